"""A job over parts: a run that is about to start on a locked cache, with the parts that are pending in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import TooManyBadRows
from cache_schema.layout import Modality
from cache_schema.progress import Progress
from stages.parts.pending import PartTask
from stages.parts.worker import PartsWorker

Settings = TypeVar("Settings")


class BuildIndexes(Protocol):
    """Builds what is missing of the indexes over finished arrays."""

    def __call__(self, arrays: Sequence[CachedArray], /, *, progress: Progress | None = None) -> object:
        """Builds them; `progress` is called with (rows done, rows, unit)."""
        ...


@dataclass(frozen=True)
class NamedSources:
    """What a run names of a plan.

    Attributes:
        numbers: places of the sources in the plan.
        empty: sources without a sample, which are not planned, and files of features without a row.
    """

    numbers: frozenset[int]
    empty: Sequence[str]


@dataclass(kw_only=True)
class PartsJob(Generic[Settings]):
    """A run that is about to start: the cache is locked, and all that its workers must agree on is on disk.

    Attributes:
        cache: open.
        settings: plain values, the same for all workers.
        worker: class of the workers, called with `settings`.
        tasks: the pending parts, images first.
        arrays: modality -> those being made; rows are counted as bad in the first.
        sources: modality -> what the run names of its plan.
        max_bad_fraction: of all planned rows of a modality; with more of them bad the run stops.
        build_indexes: called by `finish`; None builds none.
        num_planned: modality -> planned rows.

    Raises, when it is made:
        TooManyBadRows: more rows than that are bad already.
    """

    cache: Cache
    settings: Settings
    worker: Callable[..., PartsWorker]
    tasks: Sequence[PartTask]
    arrays: Mapping[Modality, Sequence[CachedArray]]
    sources: Mapping[Modality, NamedSources]
    max_bad_fraction: float
    build_indexes: BuildIndexes | None
    num_planned: Mapping[Modality, int] = field(init=False)
    _num_bad: dict[Modality, int] = field(init=False)

    def __post_init__(self) -> None:
        self.num_planned = {modality: first.plan.num_rows for modality, (first, *_) in self.arrays.items()}
        self._num_bad = dict.fromkeys(self.arrays, 0)
        for modality, (first, *_) in self.arrays.items():
            self.count_bad(modality, first.num_bad)

    @property
    def make_worker(self) -> "partial[PartsWorker]":
        """Returns the picklable factory that an executor calls once per worker."""
        return partial(self.worker, self.settings)

    @property
    def num_pending_rows(self) -> int:
        return sum(task.part.num_rows for task in self.tasks)

    def count_bad(self, modality: Modality, num_bad: int) -> None:
        """Counts bad rows of a part just committed.

        Raises:
            TooManyBadRows: more of the modality's planned rows are bad than `max_bad_fraction` allows.
        """
        self._num_bad[modality] += num_bad
        total, planned = self._num_bad[modality], self.num_planned[modality]
        if total > self.max_bad_fraction * planned:
            raise TooManyBadRows(
                f"{total:,} of {planned:,} {modality}s are bad, more than --max-bad-fraction {self.max_bad_fraction}: "
                f"see `pipeline inspect {self.cache.path} --bad`, mend what is named or allow more, and run again"
            )

    def finish(self, *, progress: Progress | None = None) -> list[CachedArray]:
        """Builds the missing indexes of finished arrays and returns all arrays; `cache` is opened anew."""
        cache = self.cache = self.cache.reopened()
        arrays = [cache.array(made.modality, made.name) for arrays in self.arrays.values() for made in arrays]
        if self.build_indexes is not None:
            self.build_indexes(arrays, progress=progress)
        return arrays
