"""`pipeline repair`: extract the damaged parts of a cache again, and no others."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache_schema.errors import RefusedError
from cache_schema.progress import Progress
from pipeline.executors.serial import SerialExecutor
from pipeline.options.fields import settings_of
from pipeline.options.shared import shared_options
from pipeline.options.types import FilePath
from pipeline.output import print_result
from pipeline.parts import RanParts, run_parts
from pipeline.progress import open_progress
from pipeline.unfinished import job_of, unfinished_teachers
from stages.extract.config import ExtractConfig
from stages.parts.failed import parts_failed

if TYPE_CHECKING:
    from cache_schema.cache import Cache
    from cache_schema.recipe import Recipe
    from cache_schema.verify import PartOfArray


@click.command(
    epilog="""\b
Example:
  pipeline repair cache
Needs the teacher (or the imported features) and the originals. Stopped half-way? Run the same command again."""
)
@click.argument("cache", type=FilePath("DIR"))
@settings_of(ExtractConfig, only=("batch_size", "device"))
@shared_options
def command(cache: Path, batch_size: int | None, device: str, as_json: bool, quiet: bool) -> None:
    """Verify the cache at CACHE, extract its damaged parts again, and verify it once more."""
    from cache_schema.cache import Cache
    from cache_schema.repair import withdraw
    from cache_schema.verify import verify_cache

    with open_progress("repair", quiet=quiet) as progress:
        withdrawn = withdraw(Cache.open(cache), verify_cache(cache, progress=progress))
        config = ExtractConfig(cache=cache, batch_size=batch_size, device=device)
        ran = [_run_again(config, recipe, progress) for recipe in unfinished_teachers(Cache.open(cache))]
        remaining = verify_cache(cache, progress=progress)
    failed = [part for of_teacher in ran for part in of_teacher.failed]
    repaired = [part for part in withdrawn if _is_committed(Cache.open(cache), part)]
    result = {
        "cache": str(cache),
        "repaired": [{"modality": p.modality, "array": p.array, "part": p.part} for p in repaired],
        "failed_parts": [part.to_json() for part in failed],
        "problems": [problem.to_json() for problem in remaining],
    }
    lines = [f"extracted again: {p.modality} {p.array or 'pixels'} part {p.part}" for p in repaired]
    print_result(
        result,
        as_json=as_json,
        lines=lines if withdrawn else ["no part was damaged"],
        next_step="" if failed or remaining else f"pipeline inspect {shlex.quote(str(cache))}",
    )
    if failed:
        raise parts_failed(failed, sum(of_teacher.num_parts for of_teacher in ran))
    if remaining:
        problem = remaining[0]
        raise RefusedError(f"{len(remaining)} problems remain, first {problem.where}: {problem.what}: {problem.remedy}")


def _run_again(config: ExtractConfig, recipe: "Recipe", progress: Progress) -> RanParts:
    """Does again what is pending of the teacher of `recipe`."""
    with job_of(config, recipe, progress) as job:
        ran = run_parts(job, SerialExecutor(), progress)
        job.finish(progress=progress)
    return ran


def _is_committed(cache: "Cache", part: "PartOfArray") -> bool:
    from cache_schema.stored_pixels import stored_pixels

    if part.array is not None:
        return part.part in cache.array(part.modality, part.array).committed
    stored = stored_pixels(cache)
    return stored is not None and part.part in stored.committed
