"""Turns one planned part into a committed one from features that others computed; the counterpart of `PartWorker`.

A sample is read, hashed and judged by extract's own reader, so that a teacher can later be put beside the features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cache_schema.atomic import Fence
from cache_schema.commit import ArrayTarget, commit_part
from cache_schema.errors import MismatchError
from cache_schema.features import storable
from cache_schema.layout import Layout, Modality
from cache_schema.plan import SourceEntry, Span
from cache_schema.records import RowException
from cache_schema.samples import OK, Sample
from stages.extract.reader import PartReader
from stages.feature_files import FeatureFile, FeatureRow, scan_once, states_of
from stages.feature_files.by_key import FeatureIndex
from stages.images.decode import Limits
from stages.images.preprocess import Preprocess
from stages.parts.pending import PartReport, PartTask
from stages.parts.worker import PartsWorker, StageClock
from stages.sources import Source
from stages.sources.feature_rows import FeaturesSource
from stages.sources.watch import SeenRoots

NUMERICS = "imported"
MISSING = "feature-missing"
WRONG_WIDTH = "feature-wrong-width"

_SHOWN_EVERY_ROWS = 256
_STORED_AT_ONCE = 1024
# Pictures are decoded only to know their size and that they can be: nobody looks at a view of them.
_LOOK_ONLY = Preprocess((1, 1), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation="nearest")


@dataclass(frozen=True)
class KnownFeatures:
    """A file of features as it was when it was planned: its fingerprint, and path -> state of every file it reads."""

    file: FeatureFile
    fingerprint: str
    states: Mapping[str, Mapping[str, int]]

    def require_unchanged(self) -> None:
        """Raises `MismatchError` when a file is not as it was."""
        now = states_of(self.file)
        for path, state in self.states.items():
            if now.get(path) != state:
                raise MismatchError(f"{path} changed since it was planned, or is gone: restore it and run again")


@dataclass(frozen=True)
class ImportSettings:
    """The plain values that every importer needs.

    Attributes:
        fence: the fence of the cache's lock.
        decode_workers: processes that decode pictures; 0 decodes inline.
        targets: the array of each modality.
        sources: the plan's sources of each modality.
        layout: of the cache.
        begun: the folders that the sources lie in, at the start of the run.
        features: modality -> number of a part -> the files of features for it and the parts after it, up to the next.
        limits: what one input may cost.
    """

    fence: Fence
    decode_workers: int
    targets: Mapping[Modality, ArrayTarget]
    sources: Mapping[Modality, tuple[SourceEntry, ...]]
    layout: Layout
    begun: SeenRoots
    features: Mapping[Modality, Mapping[int, tuple[KnownFeatures, ...]]]
    limits: Limits = field(default_factory=Limits)


class PartImporter(PartsWorker):
    """Reads, joins and commits one part after the other; `close` stops its decode processes."""

    def __init__(self, settings: ImportSettings, *, progress: Callable[[int], None] | None = None) -> None:
        super().__init__(progress=progress)
        self._settings = settings
        self._indexes: dict[tuple[Modality, int], FeatureIndex] = {}
        self._clock = StageClock("read", "decode", "write")
        self._reader = PartReader(
            settings.sources,
            _LOOK_ONLY,
            begun=settings.begun,
            layout=settings.layout,
            num_views=0,
            decode_workers=settings.decode_workers,
            limits=settings.limits,
            clock=self._clock,
        )

    def close(self) -> None:
        """Stops the decode processes."""
        self._reader.close()

    def __call__(self, task: PartTask) -> PartReport:
        """Imports and commits the part of `task`. Doing it twice gives the same files.

        Raises:
            MismatchError: a source or a file of features changed since it was planned.
            DamagedError: one of them is damaged.
            EnvironmentProblem, LockedError: as `commit_part`.
        """
        if task.may_kill:
            self._reader.decode_apart()
        self._clock.restart()
        group = max(number for number in self._settings.features[task.modality] if number <= task.part.number)
        known = self._settings.features[task.modality][group]
        for one in known:
            one.require_unchanged()
        samples = self._samples(task)
        rows: list[FeatureRow | None] = []
        for span in task.part.spans:
            with self._clock.measured("read"):
                of_span = samples[len(rows) : len(rows) + span.num_samples]
                rows += self._features_of(task.modality, span, group, of_span)
        for one in known:
            one.require_unchanged()
        if task.only is not None:
            # No teacher sees single rows here: what a worker survives, it survives whole.
            return PartReport(task.modality, task.part.number, 0)
        target = self._settings.targets[task.modality]
        features_BD, exceptions = _stored(samples, rows, target.row_format.width)
        with self._clock.measured("write"):
            record = commit_part(
                target,
                task.part.number,
                samples,
                features_BD,
                part_fingerprint=task.part_fingerprint,
                exceptions=exceptions,
                numerics=NUMERICS,
                seconds=self._clock.before_writing(),
                fence=self._settings.fence,
            )
        return PartReport(task.modality, task.part.number, record.num_rows, len(record.bad), self._clock.seconds)

    def _samples(self, task: PartTask) -> list[Sample]:
        """Returns the samples of a part, in order, judged as extract judges them."""
        samples: list[Sample] = []
        for row in self._reader.originals(task.modality, task.part):
            samples.append(row.sample)
            if len(samples) % _SHOWN_EVERY_ROWS == 0:
                self._show(len(samples))
        return samples

    def _features_of(
        self, modality: Modality, span: Span, group: int, samples: Sequence[Sample]
    ) -> list[FeatureRow | None]:
        """Returns the feature of every sample of one span, None where there is none."""
        beside = self._file_beside(modality, span.source, group)
        if beside is None:
            return self._index(modality, group).read([sample.key for sample in samples])
        rows: list[FeatureRow | None] = list(beside.stream(span.first_sample, span.num_samples, span.offset_bytes))
        if len(rows) < span.num_samples:
            raise MismatchError(f"{beside.uri} has fewer rows than planned: it changed; restore it and run again")
        return rows

    def _file_beside(self, modality: Modality, number: int, group: int) -> FeatureFile | None:
        """Returns the file whose rows are those of the source, in the same order; None where keys join them."""
        source = self._reader.source(modality, number)
        for file in (known.file for known in self._settings.features[modality][group]):
            if is_beside(source, file):
                return file
        return None

    def _index(self, modality: Modality, group: int) -> FeatureIndex:
        if (modality, group) not in self._indexes:
            files = []
            for known in self._settings.features[modality][group]:
                scan = scan_once(known.file)
                if scan.fingerprint != known.fingerprint:
                    raise MismatchError(f"{known.file.uri} changed since it was planned: restore it and run again")
                files.append((known.file, scan))
            self._indexes[modality, group] = FeatureIndex(files)
        return self._indexes[modality, group]


def is_beside(source: Source, file: FeatureFile) -> bool:
    """Returns whether the samples of `source` are the rows of `file`, in the same order, so that no key is needed."""
    if isinstance(source, FeaturesSource):
        return source.uri == file.uri
    if source.modality != "text" or source.uri not in file.paths:
        return False
    beside = file.sentences()
    return beside is not None and (beside.kind, beside.options) == (source.kind, source.options)


def _stored(
    samples: Sequence[Sample], rows: Sequence[FeatureRow | None], dim: int
) -> tuple[np.ndarray, dict[int, RowException]]:
    """Returns float16 unit rows, NaN where there is none, and why an ok sample has none."""
    stored_BD = np.full((len(samples), dim), np.nan, np.float16)
    exceptions: dict[int, RowException] = {}
    # A few rows at a time, because they are widened to float64 on the way.
    for first in range(0, len(samples), _STORED_AT_ONCE):
        good: list[int] = []
        for offset in range(first, min(first + _STORED_AT_ONCE, len(samples))):
            problem = _problem_of(rows[offset], dim)
            if samples[offset].status == OK and problem is not None:
                exceptions[offset] = RowException(offset, *problem)
            elif samples[offset].status == OK:
                good.append(offset)
        if good:
            stored_BD[good], refused = storable(np.stack([_values_of(rows[offset]) for offset in good]))
            for place, status in refused.items():
                exceptions[good[place]] = RowException(good[place], status, "")
    return stored_BD, exceptions


def _values_of(row: FeatureRow | None) -> np.ndarray:
    assert row is not None and row.values is not None
    return row.values


def _problem_of(row: FeatureRow | None, dim: int) -> tuple[str, str] | None:
    if row is None:
        return MISSING, "no feature with this key"
    if row.values is None:
        return row.status, row.reason
    return None if len(row.values) == dim else (WRONG_WIDTH, f"{len(row.values)} values")
