"""Runs the parts of a job on an executor, and says in the same words what came of them, whatever the job is."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_schema.errors import EnvironmentProblem, LockedError
from cache_schema.progress import Progress
from pipeline.executors.base import Executor
from pipeline.part_queue import PartQueue
from stages.parts.failed import FailedPart

if TYPE_CHECKING:
    from stages.parts.job import PartsJob
    from stages.parts.worker import PartsWorker

NOTHING_PENDING = "nothing was pending: the cache has all of it"


@dataclass
class RanParts:
    """The outcome of the parts of a job.

    Attributes:
        num_parts: that were pending.
        num_rows: the number of rows of the parts that are committed now.
        failed: parts that are still pending.
        seconds: stage -> seconds of all workers.
    """

    num_parts: int
    num_rows: int = 0
    failed: list[FailedPart] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)


def run_parts(job: "PartsJob[Any]", executor: Executor, progress: Progress, *, elsewhere: bool = False) -> RanParts:
    """Runs the pending parts of `job` and returns their outcome: each is committed, or failed while the others went on.

    A part at which a worker died is done again by workers that may die, until the rows to blame are found
    (`stages.parts.fatal_rows`). Where the worker is this process, the next run does that.

    Args:
        job: whose cache is locked.
        executor: runs the workers.
        progress: called with (rows of the cache done, rows, unit, slowest stage).
        elsewhere: the workers run in other processes, which cannot show their progress within a part.

    Raises:
        TooManyBadRows: more rows are bad than the job allows.
        LockedError: another run took the lock, wherever that was noticed.
        PipelineError: as `Executor.map`.
    """
    ran = RanParts(len(job.tasks))
    total = sum(job.num_planned.values())
    done = total - job.num_pending_rows
    progress(done, total, "rows")

    def show(rows_of_part: int) -> None:
        progress(done + ran.num_rows + rows_of_part, total, "rows", bottleneck(ran.seconds))

    fence = job.settings.fence
    queue = PartQueue(job, is_here=not elsewhere)
    make_worker = job.make_worker if elsewhere else _ShownHere(job.make_worker, show)
    try:
        for outcome in filter(None, map(queue.settled, executor.map(make_worker, queue))):
            task, report = outcome.task, outcome.value
            if report is None:
                assert outcome.error is not None
                error = outcome.error
                ran.failed.append(FailedPart(task.modality, task.part.number, str(error), error.exit_code))
                continue
            ran.seconds.update(report.seconds)
            ran.num_rows += report.num_rows
            show(0)
            job.count_bad(report.modality, report.num_bad)
    except LockedError as error:
        fence.check()
        raise EnvironmentProblem(
            f"{error}; but this process holds the lock, so the worker sees a copy of the cache: mount the same file "
            "system at the same path on all nodes"
        ) from error
    finally:
        queue.close()
    return ran


class _ShownHere:
    """Makes a worker that shows its progress; the one that a copy of this makes in another process shows none."""

    def __init__(self, make_worker: Callable[..., "PartsWorker"], show: Callable[[int], None]) -> None:
        self._make_worker = make_worker
        self._show = show

    def __call__(self) -> "PartsWorker":
        return self._make_worker(progress=self._show)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (self._make_worker,)


def bottleneck(seconds: Mapping[str, float]) -> str:
    """Returns which stage took most of the workers' time, and how much of it."""
    total = sum(seconds.values())
    if not total:
        return ""
    stage = max(seconds, key=lambda stage: seconds[stage])
    return f"slowest: {stage} ({100 * seconds[stage] / total:.0f} %)"


def rate(num_rows: int, seconds: float) -> str:
    """Returns `4,096 rows in 2.0 s (2048.0 rows/s)`."""
    return f"{num_rows:,} rows in {seconds:.1f} s ({num_rows / max(seconds, 1e-9):.1f} rows/s)"


def next_step(cache: Path, arrays: Sequence[Mapping[str, Any]], add: Mapping[str, str]) -> str:
    """Returns the command that goes on with `cache`: what adds the modality it lacks, as `add` has it, else mining."""
    where = shlex.quote(str(cache))
    there = {array["modality"] for array in arrays}
    for modality, command in add.items():
        if modality not in there:
            return f"pipeline {command} URI --cache {where}"
    return f"pipeline mine --cache {where} --from image --to text --k 32 --name nearest"
