"""Times an extract: its own code over the first rows of a few pending parts, into a scratch cache.

Everything that extract does to a part is done, with the real sources and the real teacher, but into a folder for
temporary files that is removed at the end; the cache itself is not touched.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from cache_schema.cache import create_cache
from cache_schema.layout import Layout, Modality
from cache_schema.plan import Part, Plan, Segment
from cache_schema.progress import Progress
from cache_schema.publication import publish_plan
from cache_schema.samples import encode_table, read_table
from cache_schema.shards import MAX_CHUNK_ROWS
from stages.extract.chosen import LARGEST_BATCH
from stages.extract.config import ExtractConfig
from stages.extract.job import ExtractJob, open_job
from stages.parts.pending import PartTask
from stages.parts.worker import PartsWorker

_LEAST_PART_ROWS = 2 * MAX_CHUNK_ROWS
_MOST_HEADS = 32
_WANTED_HEADS = 8
_GOLDEN_RATIO = 0.6180339887498949
_ONCE_A_PART = ("probe", "write")


@dataclass(frozen=True)
class TimedHead:
    """The first rows of one part, timed.

    Attributes:
        modality: the modality of the part.
        num_rows: that were encoded.
        num_bad: of them without a feature.
        seconds: by the clock, except for writing, of which only the share of these rows is counted: a shard is as long
            for a few rows as for a whole part.
        stage_seconds: read, decode, forward, probe, write.
    """

    modality: Modality
    num_rows: int
    num_bad: int
    seconds: float
    stage_seconds: Mapping[str, float]

    @property
    def seconds_per_row(self) -> float:
        return self.seconds / self.num_rows


@dataclass(frozen=True)
class Speed:
    """The speed of one modality, from all its timed heads.

    Attributes:
        num_rows: timed.
        num_parts: that they are the first rows of.
        num_bad: of the rows without a feature.
        seconds_per_row: the mean over the heads, long or short: each stands for a part.
        fastest_seconds_per_row: of one head.
        slowest_seconds_per_row: of one head.
        stage_seconds: read, decode, forward, probe, write.
        row_bytes: of a row in the sample table.
    """

    num_rows: int
    num_parts: int
    num_bad: int
    seconds_per_row: float
    fastest_seconds_per_row: float
    slowest_seconds_per_row: float
    stage_seconds: Mapping[str, float]
    row_bytes: float


@dataclass(frozen=True)
class Calibration:
    """The figures of a calibration.

    Attributes:
        start_seconds: from a new worker to its first rows, beyond what those rows take; the teacher's loading is added
            by whoever loaded it.
        speeds: of each modality with something pending.
        picture_bytes: of one stored picture; 0 where none is stored.
    """

    start_seconds: float
    speeds: Mapping[Modality, Speed]
    picture_bytes: float


def calibrate(
    config: ExtractConfig, pending: Mapping[Modality, Plan], *, seconds: float, progress: Progress | None = None
) -> Calibration:
    """Returns how fast the parts of `pending` go, measured for about `seconds` after the start of a worker.

    At least one head of every modality is timed after a first one that only warms up, however long that takes. Heads
    lie at the beginning of parts spread over all pending ones.

    Args:
        config: as for the extract; its views and pixels are those to be made.
        pending: modality -> plan with the pending parts alone.
        seconds: for timing.
        progress: called with (seconds spent, seconds, unit).

    Raises: what `open_job` and a worker raise.
    """
    with tempfile.TemporaryDirectory(prefix="pipeline-plan-") as folder, _scratch(config, pending, Path(folder)) as job:
        start = time.perf_counter()
        with job.make_worker() as worker:
            made = time.perf_counter() - start
            timing = _Timing(worker, job, job.settings.batch_size)
            warm_up = sum(timing.warm_up(modality) for modality in pending)
            timing.run(seconds, progress)
        layout = Layout(job.cache.path)
        speeds = {modality: _speed(heads, layout, timing.timed_parts(modality)) for modality, heads in timing.all()}
        pixels = sum(path.stat().st_size for path in layout.all_pixels.glob("*.arrow"))
        images = timing.num_encoded("image")
    steady = sum(speeds[modality].seconds_per_row * timing.warm_up_rows[modality] for modality in speeds)
    return Calibration(made + max(0.0, warm_up - steady), speeds, pixels / images if images else 0.0)


@contextmanager
def _scratch(config: ExtractConfig, pending: Mapping[Modality, Plan], folder: Path) -> Iterator[ExtractJob]:
    """Yields a job over the first rows of some pending parts, in a cache of its own in `folder`."""
    whole_batches = MAX_CHUNK_ROWS * -(-2 * (config.batch_size or LARGEST_BATCH) // MAX_CHUNK_ROWS)
    part_rows = min(max(_LEAST_PART_ROWS, whole_batches), *(plan.part_rows for plan in pending.values()))
    scratch = replace(config, cache=folder / "cache", images=(), texts=(), part_rows=None, index=False)
    cache = create_cache(scratch.cache, part_rows)
    with cache.lock() as lock:
        for plan in pending.values():
            publish_plan(cache, _plan_of_heads(plan, part_rows), lock.fence)
    with open_job(replace(scratch, max_bad_fraction=1.0, add_teacher=False)) as job:
        yield job


def _plan_of_heads(plan: Plan, part_rows: int) -> Plan:
    parts = list(plan.parts())
    # Multiples of the golden ratio spread evenly however many of them are reached.
    places = list(dict.fromkeys(int((i * _GOLDEN_RATIO + 0.5) % 1 * len(parts)) for i in range(4 * _MOST_HEADS)))
    # A plan of few parts has them timed more than once.
    num_heads = min(_MOST_HEADS, max(len(places), _WANTED_HEADS + 1))
    heads = [head_of(parts[places[i % len(places)]], part_rows) for i in range(num_heads)]
    # Each is the only part of a segment, because only the last part of a segment may be shorter than the others.
    segments = tuple(Segment((Part(number, number * part_rows, head.spans),)) for number, head in enumerate(heads))
    return Plan(plan.modality, part_rows, plan.sources, segments)


def head_of(part: Part, num_rows: int) -> Part:
    """Returns `part` with its first `num_rows` rows alone."""
    spans = []
    left = num_rows
    for span in part.spans:
        if left:
            spans.append(replace(span, num_samples=min(left, span.num_samples)))
            left -= spans[-1].num_samples
    return Part(part.number, part.first_row, tuple(spans))


class _Timing:
    """Runs heads through a worker and keeps their times."""

    def __init__(self, worker: PartsWorker, job: ExtractJob, batch_size: int) -> None:
        self._worker = worker
        self._part_rows = job.cache.part_rows
        self._batch_rows = min(batch_size, self._part_rows)
        self._tasks: dict[Modality, list[PartTask]] = {}
        for task in job.tasks:
            self._tasks.setdefault(task.modality, []).append(task)
        self._first: dict[Modality, TimedHead] = {}
        self._heads: dict[Modality, list[TimedHead]] = {modality: [] for modality in self._tasks}
        self._parts: dict[Modality, list[int]] = {modality: [] for modality in self._tasks}

    @property
    def warm_up_rows(self) -> dict[Modality, int]:
        return {modality: head.num_rows for modality, head in self._first.items()}

    def all(self) -> Sequence[tuple[Modality, list[TimedHead]]]:
        return list(self._heads.items())

    def timed_parts(self, modality: Modality) -> list[int]:
        """Returns the scratch parts that were encoded."""
        return self._parts[modality]

    def num_encoded(self, modality: Modality) -> int:
        return sum(head.num_rows for head in (*self._heads.get(modality, ()), *self._warm(modality)))

    def _warm(self, modality: Modality) -> list[TimedHead]:
        return [self._first[modality]] if modality in self._first else []

    def warm_up(self, modality: Modality) -> float:
        """Encodes one batch, which starts what is started only once; returns the seconds it took."""
        self._first[modality] = self._time(self._tasks[modality][0], self._batch_rows)
        return self._first[modality].seconds

    def run(self, seconds: float, progress: Progress | None) -> None:
        """Times heads until `seconds` are spent or no more are there, the modality first that had less time so far."""
        share = seconds / len(self._tasks)
        rate = {modality: 1 / self._first[modality].seconds_per_row for modality in self._tasks}
        left = {modality: tasks[1:] for modality, tasks in self._tasks.items()}
        spent = dict.fromkeys(self._tasks, 0.0)
        while any(left.values()):
            modality = min((m for m in left if left[m]), key=lambda m: spent[m])
            if self._heads[modality] and spent[modality] >= share:
                left[modality] = []
                continue
            num_rows = self._rows_for(share / _WANTED_HEADS * rate[modality])
            head = self._time(left[modality].pop(0), num_rows)
            self._heads[modality].append(head)
            spent[modality] += head.seconds
            rate[modality] = 1 / head.seconds_per_row
            if progress is not None:
                progress(min(round(sum(spent.values())), round(seconds)), round(seconds), "seconds of calibration")

    def _rows_for(self, wanted: float) -> int:
        """Returns whole batches of about so many rows: a padded batch would make the rows of a head look slow."""
        most = self._part_rows // self._batch_rows
        return self._batch_rows * max(1, min(most, round(wanted / self._batch_rows)))

    def _time(self, task: PartTask, num_rows: int) -> TimedHead:
        head = replace(task, part=head_of(task.part, num_rows))
        start = time.perf_counter()
        report = self._worker(head)
        wall = time.perf_counter() - start
        self._parts[task.modality].append(task.part.number)
        per_part = min(sum(report.seconds.get(stage, 0.0) for stage in _ONCE_A_PART), wall)
        share = report.num_rows / self._part_rows
        stages = {name: value * (share if name in _ONCE_A_PART else 1) for name, value in report.seconds.items()}
        return TimedHead(task.modality, report.num_rows, report.num_bad, wall - per_part + per_part * share, stages)


def _speed(heads: Sequence[TimedHead], layout: Layout, parts: Sequence[int]) -> Speed:
    stages: Counter[str] = Counter()
    for head in heads:
        stages.update(head.stage_seconds)
    num_rows = sum(head.num_rows for head in heads)
    each = [head.seconds_per_row for head in heads]
    modality = heads[0].modality
    return Speed(
        num_rows=num_rows,
        num_parts=len(heads),
        num_bad=sum(head.num_bad for head in heads),
        seconds_per_row=sum(each) / len(each),
        fastest_seconds_per_row=min(each),
        slowest_seconds_per_row=max(each),
        stage_seconds=dict(stages),
        row_bytes=_row_bytes([layout.samples(modality, part) for part in parts], modality),
    )


def _row_bytes(tables: Sequence[Path], modality: Modality) -> float:
    """Returns the bytes of a row in a sample table, the table's own fixed bytes left out."""
    table = pa.concat_tables(read_table(path, modality) for path in tables)
    if len(table) == 1:
        return 0.0
    return (len(encode_table(table)) - len(encode_table(table[:1]))) / (len(table) - 1)
