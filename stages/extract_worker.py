"""The worker of stage one: a loaded teacher that turns one planned part into a committed one.

The same worker runs in the serial executor and in every actor. It imports torch only inside a teacher.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
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
from cache_schema.plan import Part, SourceEntry
from cache_schema.records import RowException
from cache_schema.samples import OK, Sample, digest_of
from stages.decode import Limits, clean_text
from stages.decode_pool import DecodePool
from stages.described_teacher import loaded_teacher, numerics_of
from stages.prepare import Prepared, PreparePlan
from stages.preprocess import normalise
from stages.probes import check_probes, probes_from_bytes
from stages.sources import RawSample, Source, open_source
from stages.teachers import Teacher


@dataclass(frozen=True)
class PartTask:
    """One pending part."""

    modality: Modality
    part: Part
    part_fingerprint: str


@dataclass(frozen=True)
class PartReport:
    """What became of a part: its rows are committed. `seconds` per stage: read, decode, forward, write."""

    modality: Modality
    part: int
    num_rows: int
    num_bad: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class WorkerSettings:
    """Plain values that make every worker of one extract equal, wherever it runs.

    Attributes:
        specification: of the teacher.
        device: cpu, cuda or cuda:N.
        precision: of the forward pass.
        batch_size: rows of one forward pass; shorter batches are padded, so that features do not depend on neighbours.
        num_threads: CPU threads of the teacher; 0 means one per core.
        decode_workers: processes that decode images; 0 decodes inline.
        fence: of the cache's lock.
        targets: the array of each modality.
        sources: the plan's sources of each modality.
        numerics: kind of arithmetic that made the parts already there, None where there are none.
        limits: what one input may cost.
    """

    specification: str
    device: str
    precision: str
    batch_size: int
    num_threads: int
    decode_workers: int
    fence: Fence
    targets: Mapping[Modality, ArrayTarget]
    sources: Mapping[Modality, tuple[SourceEntry, ...]]
    numerics: Mapping[Modality, str | None]
    limits: Limits = field(default_factory=Limits)


class PartWorker:
    """Callable that commits one part after the other. A context manager; `close` stops its decode processes.

    Args:
        settings: plain values, the same for all workers.
        progress: called with the rows of the part under way that are encoded so far; for a worker in the process that
            shows it.

    Raises, when it is made:
        MismatchError: the teacher loaded here does not reproduce the probes of an array, or its device computes
            otherwise than the one that made the parts already there.
    """

    def __init__(self, settings: WorkerSettings, *, progress: Callable[[int], None] | None = None) -> None:
        self._settings = settings
        self._progress = progress
        self._teacher = loaded_teacher(settings.specification, settings.device, settings.precision)
        _set_threads(settings.num_threads)
        self._numerics = numerics_of(settings.device)
        for modality, target in settings.targets.items():
            self._admit(modality, target)
        self._pool = DecodePool(
            settings.decode_workers if "image" in settings.targets else 0,
            PreparePlan(self._teacher.preprocess, settings.limits),
        )
        self._open_sources: dict[tuple[Modality, int], Source] = {}

    def _admit(self, modality: Modality, target: ArrayTarget) -> None:
        path = target.layout.probes(modality, target.array)
        check_probes(probes_from_bytes(path.read_bytes(), where=path), self._teacher, modality, where=path)
        made_by = self._settings.numerics[modality]
        if made_by is not None and made_by != self._numerics:
            raise MismatchError(
                f"the {modality} parts in {target.layout.root} were computed on {made_by}, this worker computes on "
                f"{self._numerics}: use such a device, or extract into a new cache"
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

    def __call__(self, task: PartTask) -> PartReport:
        """Reads, encodes and commits the part of `task`. Doing it twice gives the same files.

        Raises:
            RefusedError: a source is damaged or no longer what was planned, or the lock was lost.
            EnvironmentProblem: the cache cannot be written.
        """
        seconds = dict.fromkeys(("read", "decode", "forward", "write"), 0.0)
        target = self._settings.targets[task.modality]
        work = _PartInProgress(task, target.row_format.width)
        if task.modality == "image":
            self._encode_images(work, seconds)
        else:
            self._encode_texts(work, seconds)
        with _measured(seconds, "write"):
            record = commit_part(
                target,
                task.part.number,
                work.samples,
                work.features_BD,
                part_fingerprint=task.part_fingerprint,
                exceptions=work.exceptions,
                numerics=self._numerics,
                seconds={name: round(value, 3) for name, value in seconds.items() if name != "write"},
                fence=self._settings.fence,
            )
        return PartReport(task.modality, task.part.number, record.num_rows, len(record.bad), seconds)

    def _encode_images(self, work: "_PartInProgress", seconds: dict[str, float]) -> None:
        raws: list[RawSample] = []
        digests: list[bytes | None] = []

        def payloads() -> Iterator[tuple[bytes, None]]:
            for raw in self._read(work.task, seconds):
                # The pool holds the bytes for as long as it needs them; a whole part of them would not fit in memory.
                digests.append(None if raw.payload is None else digest_of(raw.payload))
                raws.append(replace(raw, payload=None))
                yield raw.payload or b"", None

        batch: list[np.ndarray] = []
        offsets: list[int] = []
        with _measured(seconds, "decode", minus="read"):
            prepared_samples = self._pool.map(payloads())
        for offset in range(work.task.part.num_rows):
            with _measured(seconds, "decode", minus="read"):
                prepared = next(prepared_samples, None)
            if prepared is None:
                raise _source_shrank(work.task, offset)
            work.samples.append(_image_sample(work, offset, raws[offset], digests[offset], prepared))
            if prepared.pixels is not None and work.samples[-1].status == OK:
                batch.append(prepared.pixels)
                offsets.append(offset)
            if offsets and (len(offsets) == self._settings.batch_size or offset + 1 == work.task.part.num_rows):
                with _measured(seconds, "forward"):
                    work.store(offsets, self._teacher.encode_images(self._padded_pixels(batch)))
                batch, offsets = [], []
                self._show(offset + 1)

    def _show(self, num_rows: int) -> None:
        if self._progress is not None:
            self._progress(num_rows)

    def _padded_pixels(self, batch: list[np.ndarray]) -> np.ndarray:
        padding = [np.zeros_like(batch[0])] * (self._settings.batch_size - len(batch))
        return normalise(np.stack(batch + padding), self._teacher.preprocess)

    def _encode_texts(self, work: "_PartInProgress", seconds: dict[str, float]) -> None:
        texts: list[str] = []
        offsets: list[int] = []
        for offset, raw in enumerate(self._read(work.task, seconds)):
            sample = _text_sample(work, offset, raw, self._settings.limits)
            work.samples.append(sample)
            if sample.text is not None:
                texts.append(sample.text)
                offsets.append(offset)
            if offsets and (len(offsets) == self._settings.batch_size or offset + 1 == work.task.part.num_rows):
                with _measured(seconds, "forward"):
                    work.note_truncation(offsets, texts, self._teacher)
                    padding = [""] * (self._settings.batch_size - len(texts))
                    work.store(offsets, self._teacher.encode_texts(texts + padding))
                texts, offsets = [], []
                self._show(offset + 1)
        if len(work.samples) < work.task.part.num_rows:
            raise _source_shrank(work.task, len(work.samples))

    def _read(self, task: PartTask, seconds: dict[str, float]) -> Iterator[RawSample]:
        """Yields the part's raw samples in order, counting the time spent on reading."""
        for span in task.part.spans:
            samples = self._source(task.modality, span.source).read(
                span.first_sample, span.num_samples, span.offset_bytes
            )
            for _ in range(span.num_samples):
                with _measured(seconds, "read"):
                    raw = next(iter(samples), None)
                if raw is None:
                    return
                yield raw

    def _source(self, modality: Modality, number: int) -> Source:
        if (modality, number) not in self._open_sources:
            entry = self._settings.sources[modality][number]
            source = open_source(entry.uri, entry.kind, modality, dict(entry.options), fingerprint=entry.fingerprint)
            self._open_sources[modality, number] = source
        return self._open_sources[modality, number]


class _PartInProgress:
    """The samples, features and exceptions of one part as they come in."""

    def __init__(self, task: PartTask, dim: int) -> None:
        self.task = task
        self.samples: list[Sample] = []
        self.features_BD = np.full((task.part.num_rows, dim), np.nan, np.float16)
        self.exceptions: dict[int, RowException] = {}
        self._source_of = [span.source for span in task.part.spans for _ in range(span.num_samples)]

    def sample(self, offset: int, raw: RawSample, digest: bytes | None, **fields: object) -> Sample:
        return Sample(
            row=self.task.part.first_row + offset,
            key=raw.key,
            source=self._source_of[offset],
            offset_bytes=raw.offset_bytes,
            size_bytes=raw.size_bytes,
            digest=digest,
            **{"status": raw.status, "reason": raw.reason, **fields},  # type: ignore[arg-type]
        )

    def store(self, offsets: list[int], features_BD: np.ndarray) -> None:
        """Keeps the features of the rows at `offsets`; rows beyond them are padding."""
        stored, refused = storable(features_BD[: len(offsets)])
        self.features_BD[offsets] = stored
        for place, status in refused.items():
            self.exceptions[offsets[place]] = RowException(offsets[place], status, "")

    def note_truncation(self, offsets: list[int], texts: list[str], teacher: Teacher) -> None:
        """Notes for every sentence that the teacher cuts how many tokens it has."""
        counts = teacher.count_tokens(texts) if teacher.context_length is not None else None
        for offset, count in zip(offsets, counts or (), strict=False):
            if count > (teacher.context_length or 0):
                self.exceptions[offset] = RowException(offset, OK, f"truncated: {count} tokens")


def _image_sample(
    work: _PartInProgress, offset: int, raw: RawSample, digest: bytes | None, prepared: Prepared
) -> Sample:
    if raw.status != OK:
        return work.sample(offset, raw, digest)
    size = {"width": prepared.width or None, "height": prepared.height or None}
    return work.sample(
        offset,
        raw,
        digest,
        status=prepared.status,
        reason=" ".join(filter(None, (raw.reason, prepared.reason))),
        **size,
    )


def _text_sample(work: _PartInProgress, offset: int, raw: RawSample, limits: Limits) -> Sample:
    if raw.status != OK or raw.payload is None:
        return work.sample(offset, raw, None if raw.payload is None else digest_of(raw.payload))
    clean = clean_text(raw.payload, limits)
    return work.sample(offset, raw, digest_of(raw.payload), status=clean.status, reason=clean.reason, text=clean.text)


def _source_shrank(task: PartTask, num_read: int) -> MismatchError:
    return MismatchError(
        f"part {task.part.number} of the {task.modality}s has {task.part.num_rows} planned rows, its sources gave "
        f"{num_read}: a source changed after it was planned; restore it and run again"
    )


def _set_threads(num_threads: int) -> None:
    # A teacher that computes with torch has imported it by now; no other one is made to.
    torch = sys.modules.get("torch")
    if torch is not None and num_threads:
        torch.set_num_threads(num_threads)


@contextmanager
def _measured(seconds: dict[str, float], name: str, *, minus: str | None = None) -> Iterator[None]:
    """Adds the time spent inside to `seconds[name]`, less what was meanwhile added to `seconds[minus]`."""
    start, inner = time.perf_counter(), seconds[minus] if minus else 0.0
    try:
        yield
    finally:
        spent = seconds[minus] - inner if minus else 0.0
        seconds[name] += time.perf_counter() - start - spent
