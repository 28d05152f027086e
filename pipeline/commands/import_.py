"""`pipeline import`: read features that others already computed, without running a teacher."""

import time
from typing import TYPE_CHECKING, Any

import click

from cache_schema.progress import Progress
from pipeline.cache_lines import array_lines
from pipeline.executors.serial import SerialExecutor
from pipeline.options.fields import settings_of
from pipeline.options.shared import shared_options
from pipeline.output import print_note, print_result
from pipeline.parts import NOTHING_PENDING, RanParts, next_step, rate, run_parts
from pipeline.progress import open_progress
from pipeline.source_lines import source_lines, sources_of
from stages.imported.config import DEFAULT_LOGIT_SCALE, ImportConfig
from stages.parts.failed import parts_failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache_schema.cache import CachedArray
    from stages.imported.job import ImportJob
    from stages.parts.useless import UselessSource

ARRAY_COLUMNS = ("modality", "array", "rows", "ok", "bad", "pending", "dim", "fingerprint", "digest")
ADD = {"image": "import --image-features", "text": "import --text-features"}


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
        result, ran, useless = _import(config, progress)
    arrays = list(result["arrays"].values())
    if result["assumed_logit_scale"]:
        print_note(
            f"logit scale {DEFAULT_LOGIT_SCALE:g} is assumed and recorded as unknown: --logit-scale says another"
        )
    print_result(
        result,
        as_json=as_json,
        lines=[*array_lines(arrays, ARRAY_COLUMNS), *_more_lines(result)],
        next_step="" if ran.failed else next_step(config.cache, arrays, ADD),
    )
    if ran.failed:
        raise parts_failed(ran.failed, ran.num_parts)
    if useless and not config.allow_useless_sources:
        from stages.parts.useless import useless_refused

        raise useless_refused(useless, is_import=True)


def _import(config: ImportConfig, progress: Progress) -> "tuple[dict[str, Any], RanParts, Sequence[UselessSource]]":
    """Imports the pending parts and finishes the job; returns what to print, what came of them, and useless sources."""
    from stages.imported.job import open_import
    from stages.parts.useless import useless_sources

    start = time.monotonic()
    with open_import(config, progress=progress) as job:
        ran = run_parts(job, SerialExecutor(), progress)
        arrays = job.finish(progress=progress)
        useless = useless_sources(job)
        return {**_result(job, arrays, ran, start), "sources": sources_of(job, useless)}, ran, useless


def _result(job: "ImportJob", arrays: "list[CachedArray]", ran: RanParts, start: float) -> dict[str, Any]:
    from cache_schema.indexes import describe_indexes
    from cache_schema.summary import summary_of_arrays

    return {
        "cache": str(job.cache.path),
        "arrays": summary_of_arrays(arrays),
        "indexes": describe_indexes(job.cache, job.arrays),
        "num_parts": ran.num_parts,
        "failed_parts": [part.to_json() for part in ran.failed],
        "imported_rows": ran.num_rows,
        "unused_features": job.num_unused,
        "assumed_logit_scale": job.assumed_logit_scale,
        "seconds": round(time.monotonic() - start, 3),
    }


def _more_lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{number:,} {modality} features belong to no sample that was named and were left out"
        for modality, number in result["unused_features"].items()
        if number
    ]
    lines += source_lines(result["sources"])
    return [*lines, rate(result["imported_rows"], result["seconds"]) if result["num_parts"] else NOTHING_PENDING]
