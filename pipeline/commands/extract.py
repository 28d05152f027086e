"""`pipeline extract`: encode images and sentences with a teacher, once."""

import shlex
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cache_schema.errors import PartsFailed, RefusedError
from cache_schema.progress import Progress
from pipeline.cache_summary import indexes, pixels, pixels_line
from pipeline.executors.base import Executor
from pipeline.executors.choose import get_executor
from pipeline.executors.config import ExecutorConfig
from pipeline.executors.gpus import idle_gpus, num_gpus_here
from pipeline.options.executor import executor_options
from pipeline.options.fields import settings_of
from pipeline.options.shared import help_all_option, shared_options
from pipeline.output import print_note, print_result, table
from pipeline.progress import open_progress
from stages.extract.config import ExtractConfig

if TYPE_CHECKING:
    from stages.extract.job import ExtractJob

ARRAY_COLUMNS = ("modality", "array", "rows", "ok", "bad", "pending", "dim", "bytes", "fingerprint", "digest")
MAX_FAILURES_SHOWN = 5

FailedPart = dict[str, Any]


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
    runner = get_executor(executor)
    elsewhere = executor.name == "ray"
    with open_progress("extract", quiet=quiet) as progress:
        result, failures = _extract(config, runner, progress, elsewhere=elsewhere)
    arrays = list(result["arrays"].values())
    shown = [{**array, "fingerprint": array["fingerprint"][:12], "digest": array["digest"][:12]} for array in arrays]
    print_result(
        result,
        as_json=as_json,
        lines=[*table(shown, ARRAY_COLUMNS), *_more_lines(result)],
        next_step="" if failures else _next_step(config.cache, arrays),
    )
    if failures:
        raise _failed(failures, result["num_parts"])


def _extract(
    config: ExtractConfig, runner: Executor, progress: Progress, *, elsewhere: bool
) -> tuple[dict[str, Any], list[FailedPart]]:
    """Runs the pending parts and finishes the job; returns what to print and the parts that failed.

    Workers that run `elsewhere` need no GPU here, and cannot show their progress within a part.
    """
    from stages.extract.job import open_job, summary_of

    start = time.monotonic()
    failures: list[FailedPart] = []
    seconds: Counter[str] = Counter()
    num_rows = 0
    with open_job(config, describe_on="cpu" if elsewhere else None, progress=progress) as job:
        total = sum(job.cache.plan(modality).num_rows for modality in job.arrays)
        done = total - job.num_pending_rows
        if job.tasks and not elsewhere and (remark := idle_gpus(config.device, num_gpus_here())):
            print_note(remark)
        progress(done, total, "rows")

        def show(rows_of_part: int) -> None:
            progress(done + num_rows + rows_of_part, total, "rows", _bottleneck(seconds))

        make_worker = job.make_worker if elsewhere else partial(job.make_worker, progress=show)
        for outcome in runner.map(make_worker, job.tasks):
            task, report = outcome.task, outcome.value
            if report is None:
                assert outcome.error is not None
                part = {"modality": task.modality, "part": task.part.number, "error": str(outcome.error)}
                failures.append({**part, "exit_code": outcome.error.exit_code})
                continue
            seconds.update(report.seconds)
            num_rows += report.num_rows
            progress(done + num_rows, total, "rows", _bottleneck(seconds))
            job.count_bad(report.modality, report.num_bad)
        arrays = summary_of(job.finish(progress=progress))
        return _result(job, arrays, failures, seconds, num_rows, start), failures


def _result(
    job: "ExtractJob",
    arrays: Any,
    failures: list[FailedPart],
    seconds: Counter[str],
    num_rows: int,
    start: float,
) -> dict[str, Any]:
    finished = job.cache
    return {
        "cache": str(finished.path),
        "arrays": arrays,
        "pixels": pixels(finished),
        "indexes": [index for modality in job.arrays for index in indexes(finished, modality)],
        "num_parts": len(job.tasks),
        "failed_parts": failures,
        "extracted_rows": num_rows,
        "seconds": round(time.monotonic() - start, 3),
        "stage_seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "seconds_per_1000_rows": {stage: round(1000 * value / max(num_rows, 1), 4) for stage, value in seconds.items()},
    }


def _bottleneck(seconds: Counter[str]) -> str:
    """Returns which stage took most of the workers' time so far."""
    if not seconds.total():
        return ""
    stage, most = seconds.most_common(1)[0]
    return f"slowest: {stage} ({100 * most / seconds.total():.0f} %)"


def _speed(result: dict[str, Any]) -> str:
    if not result["num_parts"]:
        return "nothing was pending: the cache has all of it"
    rows, seconds = result["extracted_rows"], result["seconds"]
    said = f"{rows:,} rows in {seconds:.1f} s ({rows / max(seconds, 1e-9):.1f} rows/s)"
    meter = ", ".join(f"{stage} {value:.3g}" for stage, value in result["seconds_per_1000_rows"].items())
    slowest = _bottleneck(Counter(result["stage_seconds"]))
    return "; ".join(filter(None, (said, f"seconds per 1,000 rows: {meter}" if meter else "", slowest)))


def _more_lines(result: dict[str, Any]) -> list[str]:
    stored = [] if result["pixels"] is None else [pixels_line(result["pixels"])]
    return [*stored, *map(_index_line, result["indexes"]), _speed(result)]


def _index_line(index: dict[str, Any]) -> str:
    kind = {"flat": "exact search", "ivf": "inverted lists"}.get(index["kind"], index["kind"])
    recall = f", recall at 10 {index['recall_at_10']:.3f}" if index["kind"] == "ivf" else ""
    return f"index {index['modality']}/{index['index']}: {kind}{recall}, {index['state']}"


def _next_step(cache: Path, arrays: list[dict[str, Any]]) -> str:
    where = shlex.quote(str(cache))
    missing = {"image": "images", "text": "texts"}.keys() - {array["modality"] for array in arrays}
    if missing:
        return f"pipeline extract --{missing.pop()}s URI --cache {where}"
    return f"pipeline mine --cache {where} --from image --to text --k 32 --name nearest"


def _failed(failures: list[FailedPart], num_parts: int) -> PartsFailed | RefusedError:
    """Returns the error that lists failed parts: refused when doing them again would be refused again."""
    named = [f"{part['modality']} part {part['part']}: {part['error']}" for part in failures[:MAX_FAILURES_SHOWN]]
    more = f" and {len(failures) - len(named)} more" if len(failures) > len(named) else ""
    said = f"{len(failures)} of {num_parts} parts failed ({'; '.join(named)}{more})"
    if all(part["exit_code"] == 4 for part in failures):
        return RefusedError(f"{said}: mend what is named and run again; the other parts are committed")
    return PartsFailed(f"{said}: run again to resume")
