"""Stage two: train a student image tower from cached teacher features. The teacher itself is never loaded here.

`distill` is a plain function of a picklable configuration; whoever calls it handles signals through `should_stop`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from cache_schema import atomic
from cache_schema.json_file import Json
from cache_schema.progress import Progress, silent
from stages.distill.config import DistillConfig
from stages.distill.job import DistillJob
from stages.distill.loop import TrainingLoop, TrainingStopped
from stages.distill.resolve import open_job
from stages.files.apart import require_outside_sources
from stages.runs.folder import RunFolder, forget, open_folder
from stages.runs.record import RunRecord, read_record, require_same, write_record

__all__ = ["DistillConfig", "TrainingStopped", "distill"]


def distill(
    config: DistillConfig,
    *,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Json]:
    """Trains the student that `config` asks for, or goes on where an earlier call stopped, and returns the result.

    A run that was stopped or killed and is called again ends with the same weights and metrics.jsonl, bit for bit, on
    a CPU with the same number of threads. A run that has ended returns its result again.

    Args:
        config: what is asked.
        progress: called after every step.
        notice: called with a sentence about anything a person should know.
        should_stop: asked before every step.

    Returns:
        JSON: `run`, `model`, `student`, `num_parameters`, `steps`, `images_seen`, `loss` and `cosine` of the last step,
        `weights_sha256`, `has_text_tower`, and `seconds` that the last process took.

    Raises:
        UsageError, UnfinishedError, MismatchError: see `open_job`.
        UsageError: `out` lies inside a cache, or inside a folder that the cache was made from.
        RefusedError: `out` holds something else; nothing was touched.
        MismatchError: `out` is a run that was asked something else; shows the fields.
        LockedError: another process trains there.
        EnvironmentProblem: the device has not enough memory, or the disk not enough space.
        DivergedError: a loss or gradient is not finite. The last checkpoint stays.
        TrainingStopped: `should_stop` said so.
    """
    say = notice or _ignore
    with _threads(config.num_threads):
        job = open_job(config)
        if not RunFolder(config.out).run_json.exists():
            plans = (job.images.plan, job.texts.plan)
            require_outside_sources(config.out, "--out", [source.uri for plan in plans for source in plan.sources])
        folder = open_folder(config.out)
        with folder.lock() as lock:
            method, record = job.method, _begin(job, folder, lock.fence)
            if record.result is not None:
                say(f"run {folder.root} has ended before; this is its result")
                return dict(record.result)
            say(
                f"{method.steps:,} steps of {method.batch_size:,} images and {method.text_batch_size:,} sentences, "
                f"from {len(job.sequence.rows):,} ok images of the {_where(method.images)} and "
                f"{len(job.text_rows):,} ok sentences of the {_where(method.texts)}"
            )
            if job.replay is not None or job.small is not None:
                say(_what_is_seen(job))
            loop = TrainingLoop(
                job,
                folder,
                record,
                fence=lock.fence,
                progress=progress or silent,
                notice=say,
                should_stop=should_stop or _never,
            )
            return loop.finish()


def _where(selection: str | None) -> str:
    return "cache" if selection is None else f"selection {selection!r}"


def _begin(job: DistillJob, folder: RunFolder, fence: atomic.Fence) -> RunRecord:
    """Returns the record of the run in `folder`: the one that is there when it is the same run, else a new one."""
    if folder.run_json.exists() and job.running.fresh:
        forget(folder, fence=fence)
    record = job.new_record()
    if folder.run_json.exists():
        then = read_record(folder)
        require_same(folder, record, then)
        record = then
    else:
        write_record(folder, record, fence=fence)
    _copy_probes(job, folder, fence)
    return record


def _copy_probes(job: DistillJob, folder: RunFolder, fence: atomic.Fence) -> None:
    """Copies what the teacher made of the probes, so that a run can check its teacher when the cache is gone."""
    for array in (job.images, job.texts):
        stored, copy = job.cache.layout.probes(array.modality, array.name), folder.probes(array.modality)
        if stored.exists() and not copy.exists():
            atomic.make_folder(copy.parent)
            atomic.publish_bytes(copy, stored.read_bytes(), fence=fence)


def _what_is_seen(job: DistillJob) -> str:
    views = "" if job.replay is None else ", ".join(str(array.recipe.view) for array in job.replay.arrays)
    crops = f"the teacher's views {views} are replayed in turn" if views else "the student draws its own crops"
    return f"{crops}, cut from {'the originals' if job.small is None else 'the stored pixels'}"


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if num_threads:
        torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ignore(sentence: str) -> None:
    """Stands for a `notice` that nobody gave."""


_never = partial(bool, False)
