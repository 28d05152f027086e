"""`pipeline repair`: extract the damaged parts of a cache again, and no others."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache_schema.errors import PartsFailed, RefusedError
from cache_schema.progress import Progress
from pipeline.commands.import_ import failed_parts, import_features
from pipeline.executors.serial import SerialExecutor
from pipeline.options.fields import settings_of
from pipeline.options.shared import shared_options
from pipeline.options.types import FilePath
from pipeline.output import print_result
from pipeline.progress import open_progress
from stages.extract.config import ExtractConfig
from stages.imported.config import ImportConfig

if TYPE_CHECKING:
    from cache_schema.cache import Cache
    from cache_schema.recipe import Recipe


@click.command(
    epilog="""\b
Example:
  pipeline repair cache
Needs the teacher (or the imported features) and the originals. Stopped half-way? Run the same command again."""
)
@click.argument("cache", type=FilePath("DIR"))
@settings_of(ExtractConfig, only=("batch_size", "device"))
@shared_options
def command(cache: Path, batch_size: int, device: str, as_json: bool, quiet: bool) -> None:
    """Verify the cache at CACHE, extract its damaged parts again, and verify it once more."""
    from cache_schema.cache import Cache
    from cache_schema.repair import withdraw
    from cache_schema.verify import verify_cache

    with open_progress("repair", quiet=quiet) as progress:
        withdrawn = withdraw(Cache.open(cache), verify_cache(cache, progress=progress))
        config = ExtractConfig(cache=cache, batch_size=batch_size, device=device)
        for recipe in _unfinished(Cache.open(cache)):
            if recipe.is_imported:
                _import(cache, recipe.teacher["name"], progress)
            else:
                _extract(config, recipe.specification, recipe.precision, progress)
        remaining = verify_cache(cache, progress=progress)
    result = {
        "cache": str(cache),
        "repaired": [{"modality": p.modality, "array": p.array, "part": p.part} for p in withdrawn],
        "problems": [problem.to_json() for problem in remaining],
    }
    lines = [f"extracted again: {p.modality} {p.array or 'pixels'} part {p.part}" for p in withdrawn] or [
        "no part was damaged"
    ]
    print_result(
        result,
        as_json=as_json,
        lines=lines,
        next_step="" if remaining else f"pipeline inspect {shlex.quote(str(cache))}",
    )
    if remaining:
        problem = remaining[0]
        raise RefusedError(f"{len(remaining)} problems remain, first {problem.where}: {problem.what}: {problem.remedy}")


def _unfinished(cache: "Cache") -> list["Recipe"]:
    """Returns a recipe of every teacher, and precision, with a pending part; of any when only pixels are pending."""
    from cache_schema.stored_pixels import stored_pixels

    found: dict[tuple[str, str], Recipe] = {}
    for modality in cache.modalities:
        for array in (cache.array(modality, name) for name in cache.arrays(modality)):
            if array.pending():
                found[array.recipe.specification, array.recipe.precision] = array.recipe
    stored = stored_pixels(cache)
    if not found and stored is not None and stored.pending():
        return [cache.array("image", cache.arrays("image")[0]).recipe]
    return list(found.values())


def _import(cache: Path, teacher_name: str, progress: Progress) -> None:
    """Imports the pending parts from the files that the cache remembers."""
    result, failures = import_features(ImportConfig(cache=cache, teacher_name=teacher_name), progress)
    if failures:
        raise failed_parts(failures, result["num_parts"])


def _extract(config: ExtractConfig, teacher: str, precision: str, progress: Progress) -> None:
    from stages.extract.job import open_job

    with open_job(replace(config, teacher=teacher, precision=precision), progress=progress) as job:
        for done, outcome in enumerate(SerialExecutor().map(job.make_worker, job.tasks), start=1):
            if outcome.error is not None:
                raise PartsFailed(f"part {outcome.task.part.number} failed ({outcome.error}): mend that and run again")
            progress(done, len(job.tasks), "parts")
        job.finish(progress=progress)
