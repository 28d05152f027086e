"""Turns one planned part into a committed one from features that others computed; the counterpart of `PartWorker`.

A sample is read, hashed and judged exactly as extract does it, so that a teacher can later be put beside the features.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import numpy as np

from cache_schema.atomic import Fence
from cache_schema.commit import ArrayTarget, commit_part
from cache_schema.errors import MismatchError
from cache_schema.features import storable
from cache_schema.layout import Modality
from cache_schema.plan import Part, SourceEntry, Span
from cache_schema.records import RowException
from cache_schema.samples import OK, Sample, digest_of
from stages.extract.clean_text import clean_text
from stages.feature_files import FeatureFile, FeatureRow, scan_once, states_of
from stages.feature_files.by_key import FeatureIndex
from stages.images.decode import Limits
from stages.images.pool import DecodePool
from stages.images.prepare import CropPreparation, Prepared
from stages.images.preprocess import Preprocess
from stages.sources import RawSample, Source, open_source
from stages.sources.feature_rows import FeaturesSource

NUMERICS = "imported"
MISSING = "feature-missing"
WRONG_WIDTH = "feature-wrong-width"

_SHOWN_EVERY_ROWS = 256
_STORED_AT_ONCE = 1024
# Pictures are decoded only to know their size and that they can be: the smallest resize will do.
_LOOK_ONLY = Preprocess((1, 1), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation="nearest")


@dataclass(frozen=True)
class ImportTask:
    """One pending part of the array of a modality."""

    modality: Modality
    part: Part
    part_fingerprint: str


@dataclass(frozen=True)
class ImportReport:
    """What became of a part: its rows are committed. `seconds` per stage: read, decode, write."""

    modality: Modality
    part: int
    num_rows: int
    num_bad: int
    seconds: Mapping[str, float]


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
    """What a part needs to be imported.

    Attributes:
        fence: of the cache's lock.
        decode_workers: processes that decode pictures; 0 decodes inline.
        targets: the array of each modality.
        sources: the plan's sources of each modality.
        features: modality -> number of a part -> the files of features for it and the parts after it, up to the next.
        limits: what one input may cost.
    """

    fence: Fence
    decode_workers: int
    targets: Mapping[Modality, ArrayTarget]
    sources: Mapping[Modality, tuple[SourceEntry, ...]]
    features: Mapping[Modality, Mapping[int, tuple[KnownFeatures, ...]]]
    limits: Limits = field(default_factory=Limits)


class PartImporter:
    """Callable that commits one part after the other. A context manager; `close` stops its decode processes."""

    def __init__(self, settings: ImportSettings, *, progress: Callable[[int], None] | None = None) -> None:
        self._settings = settings
        self._progress = progress
        self._indexes: dict[tuple[Modality, int], FeatureIndex] = {}
        self._open_sources: dict[tuple[Modality, int], Source] = {}
        has_pictures = any(entry.kind != FeaturesSource.kind for entry in settings.sources.get("image", ()))
        self._pool = DecodePool(
            settings.decode_workers if has_pictures else 0, CropPreparation(_LOOK_ONLY, settings.limits)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the decode processes."""
        self._pool.close()

    def __call__(self, task: ImportTask) -> ImportReport:
        """Imports and commits one part.

        Raises:
            MismatchError: a source or a file of features changed since it was planned.
            DamagedError: one of them is damaged.
            EnvironmentProblem, LockedError: as `commit_part`.
        """
        seconds: dict[str, float] = defaultdict(float)
        group = max(number for number in self._settings.features[task.modality] if number <= task.part.number)
        known = self._settings.features[task.modality][group]
        for one in known:
            one.require_unchanged()
        samples: list[Sample] = []
        rows: list[FeatureRow | None] = []
        for span in task.part.spans:
            samples += self._samples_of(task, span, len(samples), seconds)
            with _measured(seconds, "read"):
                rows += self._features_of(task.modality, span, group, samples[len(rows) :])
        for one in known:
            one.require_unchanged()
        target = self._settings.targets[task.modality]
        features_BD, exceptions = _stored(samples, rows, target.row_format.width)
        with _measured(seconds, "write"):
            record = commit_part(
                target,
                task.part.number,
                samples,
                features_BD,
                part_fingerprint=task.part_fingerprint,
                exceptions=exceptions,
                numerics=NUMERICS,
                seconds={name: round(value, 3) for name, value in seconds.items() if name != "write"},
                fence=self._settings.fence,
            )
        return ImportReport(task.modality, task.part.number, record.num_rows, len(record.bad), seconds)

    def _samples_of(self, task: ImportTask, span: Span, offset: int, seconds: dict[str, float]) -> list[Sample]:
        """Returns the samples of one span, in order, judged as extract judges them."""
        source = self._source(task.modality, span.source)
        raws = source.read(span.first_sample, span.num_samples, span.offset_bytes)
        judged: Iterator[Sample]
        if source.kind == FeaturesSource.kind:
            judged = map(_sample_of, raws)
        elif task.modality == "text":
            judged = (_sentence_of(raw, self._settings.limits) for raw in raws)
        else:
            judged = self._pictures(raws, seconds)
        samples: list[Sample] = []
        stage = "decode" if task.modality == "image" else "read"
        with _measured(seconds, stage, minus="read" if stage == "decode" else None):
            for sample in judged:
                row = task.part.first_row + offset + len(samples)
                samples.append(replace(sample, row=row, source=span.source))
                if self._progress is not None and len(samples) % _SHOWN_EVERY_ROWS == 0:
                    self._progress(offset + len(samples))
        if len(samples) < span.num_samples:
            raise MismatchError(f"{source.uri} has fewer samples than planned: it changed; restore it and run again")
        return samples

    def _pictures(self, raws: Iterator[RawSample], seconds: dict[str, float]) -> Iterator[Sample]:
        waiting: deque[Sample] = deque()

        def payloads() -> Iterator[tuple[bytes, None]]:
            while True:
                with _measured(seconds, "read"):
                    raw = next(raws, None)
                if raw is None:
                    return
                # The pool holds the bytes for as long as it needs them; a whole part of them would not fit in memory.
                waiting.append(_sample_of(raw))
                yield raw.payload or b"", None

        for prepared in self._pool.map(payloads()):
            sample = waiting.popleft()
            yield _with_picture(sample, prepared) if sample.status == OK else sample

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
        source = self._source(modality, number)
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

    def _source(self, modality: Modality, number: int) -> Source:
        if (modality, number) not in self._open_sources:
            entry = self._settings.sources[modality][number]
            source = open_source(entry.uri, entry.kind, modality, dict(entry.options), fingerprint=entry.fingerprint)
            self._open_sources[modality, number] = source
        return self._open_sources[modality, number]


def is_beside(source: Source, file: FeatureFile) -> bool:
    """Returns whether the samples of `source` are the rows of `file`, in the same order, so that no key is needed."""
    if isinstance(source, FeaturesSource):
        return source.uri == file.uri
    if source.modality != "text" or source.uri not in file.paths:
        return False
    beside = file.sentences()
    return beside is not None and (beside.kind, beside.options) == (source.kind, source.options)


def _sample_of(raw: RawSample) -> Sample:
    digest = None if raw.payload is None else digest_of(raw.payload)
    return Sample(-1, raw.key, -1, raw.offset_bytes, raw.size_bytes, digest, raw.status, raw.reason)


def _sentence_of(raw: RawSample, limits: Limits) -> Sample:
    sample = _sample_of(raw)
    if raw.status != OK or raw.payload is None:
        return sample
    clean = clean_text(raw.payload, limits)
    return replace(sample, status=clean.status, reason=clean.reason, text=clean.text)


def _with_picture(sample: Sample, prepared: Prepared) -> Sample:
    reason = " ".join(filter(None, (sample.reason, prepared.reason)))
    width, height = prepared.width or None, prepared.height or None
    return replace(sample, status=prepared.status, reason=reason, width=width, height=height)


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


@contextmanager
def _measured(seconds: dict[str, float], name: str, *, minus: str | None = None) -> Iterator[None]:
    """Adds the time spent inside to `seconds[name]`, less what was meanwhile added to `seconds[minus]`."""
    start, inner = time.perf_counter(), seconds[minus] if minus else 0.0
    try:
        yield
    finally:
        spent = seconds[minus] - inner if minus else 0.0
        seconds[name] += time.perf_counter() - start - spent
