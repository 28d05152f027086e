"""`pipeline import`: read features that others already computed, without running a teacher."""

import shlex
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cache_schema.errors import PartsFailed, RefusedError
from cache_schema.progress import Progress
from pipeline.cache_summary import indexes
from pipeline.executors.base import Failure
from pipeline.executors.serial import SerialExecutor
from pipeline.options.fields import settings_of
from pipeline.options.shared import shared_options
from pipeline.output import print_note, print_result, table
from pipeline.progress import open_progress
from stages.imported.config import DEFAULT_LOGIT_SCALE, ImportConfig

if TYPE_CHECKING:
    from stages.imported.job import ImportJob

ARRAY_COLUMNS = ("modality", "array", "rows", "ok", "bad", "pending", "dim", "fingerprint", "digest")


@click.command(
    epilog="""\b
Examples:
  pipeline import --image-features 'feat/image_{00..31}.feat.tsv' --images 'tsv/image_{00..31}.tsv' \\
                  --text-features feat/text_00.feat.tsv --texts tsv/text_00.tsv \\
                  --teacher-name openai-ViT-L-14 --cache cache
  pipeline import --image-features clip-retrieval-output --text-features clip-retrieval-output \\
                  --teacher-name openai-ViT-B-32 --cache cache
Formats: dime-fm (.tsv), clip-retrieval (its output folder), npy (with a .parquet of keys beside it), parquet;
write one before a path as in npy:PATH. Stopped half-way? Run the same command again."""
)
@settings_of(ImportConfig)
@shared_options
def command(as_json: bool, quiet: bool, **settings: Any) -> None:
    """Read features that others already computed into a cache, without running a teacher."""
    config = ImportConfig(**settings)
    with open_progress("import", quiet=quiet) as progress:
        result, failures = import_features(config, progress)
    arrays = list(result["arrays"].values())
    shown = [{**array, "fingerprint": array["fingerprint"][:12], "digest": array["digest"][:12]} for array in arrays]
    if result["assumed_logit_scale"]:
        print_note(
            f"logit scale {DEFAULT_LOGIT_SCALE:g} is assumed and recorded as unknown: --logit-scale says another"
        )
    print_result(
        result,
        as_json=as_json,
        lines=[*table(shown, ARRAY_COLUMNS), *_said(result)],
        next_step="" if failures else _next_step(config.cache, arrays),
    )
    if failures:
        raise failed_parts(failures, result["num_parts"])


def import_features(config: ImportConfig, progress: Progress) -> tuple[dict[str, Any], list[Failure]]:
    """Imports the pending parts and finishes the job; returns what to print and why parts failed."""
    from stages.extract.job import summary_of
    from stages.imported.job import open_import

    start, num_rows = time.monotonic(), 0
    failures: list[Failure] = []
    with open_import(config, progress=progress) as job:
        total = sum(job.num_planned.values())
        done = total - job.num_pending_rows
        progress(done, total, "rows")

        def show(rows_of_part: int) -> None:
            progress(done + num_rows + rows_of_part, total, "rows")

        for outcome in SerialExecutor().map(partial(job.make_worker, progress=show), job.tasks):
            if outcome.value is None:
                assert outcome.error is not None
                failures.append(outcome.error)
                continue
            num_rows += outcome.value.num_rows
            show(0)
            job.count_bad(outcome.value.modality, outcome.value.num_bad)
        arrays = summary_of(job.finish(progress=progress))
        return _result(job, arrays, failures, num_rows, time.monotonic() - start), failures


def failed_parts(failures: list[Failure], num_parts: int) -> PartsFailed | RefusedError:
    """Returns the error that names failed parts: refused when doing them again would be refused again."""
    said = f"{len(failures)} of {num_parts} parts failed ({'; '.join(str(failure) for failure in failures[:5])})"
    if all(failure.exit_code == 4 for failure in failures):
        return RefusedError(f"{said}: mend what is named and run again; the other parts are committed")
    return PartsFailed(f"{said}: run again to resume")


def _result(job: "ImportJob", arrays: Any, failures: list[Failure], num_rows: int, seconds: float) -> dict[str, Any]:
    from cache_schema.cache import Cache

    finished = Cache.open(job.cache.path)
    return {
        "cache": str(finished.path),
        "arrays": arrays,
        "indexes": [index for modality in job.arrays for index in indexes(finished, modality)],
        "num_parts": len(job.tasks),
        "failed_parts": [str(failure) for failure in failures],
        "imported_rows": num_rows,
        "unused_features": job.num_unused,
        "assumed_logit_scale": job.assumed_logit_scale,
        "seconds": round(seconds, 3),
    }


def _said(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{number:,} {modality} features belong to no sample that was named and were left out"
        for modality, number in result["unused_features"].items()
        if number
    ]
    if not result["num_parts"]:
        return [*lines, "nothing was pending: the cache has all of it"]
    rows, seconds = result["imported_rows"], result["seconds"]
    return [*lines, f"{rows:,} rows in {seconds:.1f} s ({rows / max(seconds, 1e-9):.1f} rows/s)"]


def _next_step(cache: Path, arrays: list[dict[str, Any]]) -> str:
    where = shlex.quote(str(cache))
    missing = {"image", "text"} - {array["modality"] for array in arrays}
    if missing:
        return f"pipeline import --{missing.pop()}-features URI --cache {where}"
    return f"pipeline mine --cache {where} --from image --to text --k 32 --name nearest"
