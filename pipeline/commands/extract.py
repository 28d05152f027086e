"""`pipeline extract`: encode images and sentences with a teacher, once."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from cache_schema.progress import Progress
from pipeline.cache_lines import array_lines, index_line, pixels_line
from pipeline.executors.base import Executor
from pipeline.executors.choose import get_executor
from pipeline.executors.config import ExecutorConfig
from pipeline.executors.gpus import idle_gpus, on_all_gpus
from pipeline.options.executor import executor_options
from pipeline.options.fields import settings_of
from pipeline.options.shared import help_all_option, shared_options
from pipeline.output import print_note, print_result
from pipeline.parts import NOTHING_PENDING, RanParts, bottleneck, next_step, rate, run_parts
from pipeline.progress import open_progress
from pipeline.source_lines import source_lines, sources_of
from pipeline.unfinished import job_of, unfinished_teachers
from stages.device import AUTO, num_gpus_here
from stages.extract.config import ExtractConfig
from stages.parts.failed import parts_failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache_schema.cache import CachedArray
    from stages.extract.job import ExtractJob
    from stages.parts.useless import UselessSource

ARRAY_COLUMNS = ("modality", "array", "rows", "ok", "bad", "pending", "dim", "bytes", "fingerprint", "digest")
ADD = {"image": "extract --images", "text": "extract --texts"}


@click.command(
    epilog="""\b
Example:
  pipeline extract --images 'photos/{000..099}.tar' --texts captions.txt \\
                   --teacher open_clip:ViT-L-14/openai --cache cache
A URI is a path, a glob or a {000..099} range; its kind (`pipeline list sources`) is told by its name
(or `kind:` in front, `?option=value` behind). Stopped half-way? Run the same command again."""
)
@settings_of(ExtractConfig)
@executor_options()
@help_all_option
@shared_options
def command(executor: ExecutorConfig, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Encode images and sentences with a teacher, once, into a cache that students train from."""
    config = ExtractConfig(**settings)
    with open_progress("extract", quiet=quiet) as progress:
        result, ran, useless = _extract(config, executor, progress)
    arrays = list(result["arrays"].values())
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

        raise useless_refused(useless)


def _extract(
    config: ExtractConfig, executor: ExecutorConfig, progress: Progress
) -> "tuple[dict[str, Any], RanParts, Sequence[UselessSource]]":
    """Runs the pending parts and finishes the job; returns what to print, what came of the parts, and useless sources.

    Workers of Ray need no GPU here, and cannot show their progress within a part.
    """
    from stages.extract.chosen import Surroundings
    from stages.extract.job import open_job
    from stages.parts.useless import useless_sources
    from stages.teachers.described import forget_loaded_teacher

    start = time.monotonic()
    share = executor.gpus_per_worker or 1.0
    around = Surroundings(elsewhere=executor.name == "ray", gpu_share=share, notice=print_note)
    with open_job(config, around=around, progress=progress) as job:
        num_gpus = num_gpus_here()
        was_open = executor.name == AUTO
        executor = on_all_gpus(executor, job.settings.device, num_gpus)
        runner, elsewhere = get_executor(executor), executor.name == "ray"
        # Where "auto" is the CPU, a GPU could not be used: there is none, or none for such a teacher.
        could_be_told = not elsewhere and (config.device, job.settings.device) != (AUTO, "cpu")
        if job.tasks and could_be_told and (remark := idle_gpus(job.settings.device, num_gpus)):
            print_note(remark)
        if elsewhere:
            forget_loaded_teacher()
            if was_open:
                print_note(f"all {num_gpus} GPUs of this machine compute, with a Ray worker each")
        ran = run_parts(job, runner, progress, elsewhere=elsewhere)
        arrays = job.finish(progress=progress)
        useless = useless_sources(job)
        result = {**_result(job, arrays, ran, start), "sources": sources_of(job, useless)}
    if config.accept_new or config.retry_bad is not None:
        _finish_other_teachers(config, runner, progress, ran)
    return result, ran, useless


def _finish_other_teachers(config: ExtractConfig, runner: Executor, progress: Progress, ran: RanParts) -> None:
    """Commits again, in the arrays of other teachers, the parts whose rows were taken back for all."""
    from cache_schema.cache import Cache

    others = replace(config, images=(), texts=(), accept_new=False, retry_bad=None)
    for recipe in unfinished_teachers(Cache.open(config.cache)):
        if recipe.specification != config.teacher:
            with job_of(others, recipe, progress) as job:
                more = run_parts(job, runner, progress)
                job.finish(progress=progress)
            ran.num_parts += more.num_parts
            ran.failed += more.failed


def _result(job: "ExtractJob", arrays: "list[CachedArray]", ran: RanParts, start: float) -> dict[str, Any]:
    from cache_schema.indexes import describe_indexes
    from cache_schema.summary import summary_of_arrays, summary_of_pixels

    per_1000_rows = {stage: round(1000 * value / max(ran.num_rows, 1), 4) for stage, value in ran.seconds.items()}
    return {
        "cache": str(job.cache.path),
        "arrays": summary_of_arrays(arrays),
        "pixels": summary_of_pixels(job.cache),
        "indexes": describe_indexes(job.cache, job.arrays),
        "num_parts": ran.num_parts,
        "failed_parts": [part.to_json() for part in ran.failed],
        "extracted_rows": ran.num_rows,
        "seconds": round(time.monotonic() - start, 3),
        "stage_seconds": {stage: round(value, 3) for stage, value in ran.seconds.items()},
        "seconds_per_1000_rows": per_1000_rows,
    }


def _speed(result: dict[str, Any]) -> str:
    if not result["num_parts"]:
        return NOTHING_PENDING
    meter = ", ".join(f"{stage} {value:.3g}" for stage, value in result["seconds_per_1000_rows"].items())
    said = rate(result["extracted_rows"], result["seconds"]), f"seconds per 1,000 rows: {meter}" if meter else ""
    return "; ".join(filter(None, (*said, bottleneck(result["stage_seconds"]))))


def _more_lines(result: dict[str, Any]) -> list[str]:
    stored = [] if result["pixels"] is None else [pixels_line(result["pixels"])]
    return [*stored, *map(index_line, result["indexes"]), *source_lines(result["sources"]), _speed(result)]
