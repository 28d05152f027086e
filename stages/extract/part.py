"""A part while it is being made: its samples, and for every array the features and exceptions of its rows."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from cache_schema.commit import ArrayTarget
from cache_schema.errors import MismatchError
from cache_schema.features import storable
from cache_schema.layout import Layout, Modality
from cache_schema.pixels import PixelRow, PixelsRecipe
from cache_schema.plan import Part
from cache_schema.records import RowException
from cache_schema.samples import OK, Sample, digest_of
from cache_schema.view_checks import VIEW_CHECK_BYTES
from stages.extract.clean_text import clean_text
from stages.images.decode import Limits
from stages.images.prepare import Prepared
from stages.images.views import ViewRule
from stages.sources import RawSample
from stages.teachers import Teacher


@dataclass(frozen=True)
class PartTask:
    """One planned part with everything of it that is pending: it is read and decoded once for all of that.

    Attributes:
        modality: image or text.
        part: as planned.
        part_fingerprint: of what the plan says.
        arrays: names of those in which the part is pending.
        pixels: whether its stored pixels are pending.
    """

    modality: Modality
    part: Part
    part_fingerprint: str
    arrays: tuple[str, ...]
    pixels: bool = False

    def __str__(self) -> str:
        return f"{self.modality} part {self.part.number}"


@dataclass(frozen=True)
class PartReport:
    """What became of a part: all that was pending of it is committed.

    `num_bad` counts rows that have no feature in view 0; it is 0 when view 0 was there already. `seconds` are those of
    each stage: read, decode, forward, write.
    """

    modality: Modality
    part: int
    num_rows: int
    num_bad: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: "PartReport") -> "PartReport":
        seconds = {stage: self.seconds.get(stage, 0.0) + value for stage, value in other.seconds.items()}
        return replace(self, num_bad=self.num_bad + other.num_bad, seconds={**self.seconds, **seconds})


@dataclass(frozen=True)
class ArrayOutput:
    """One array that parts are committed to.

    Attributes:
        target: where it is.
        rule: of a view that is a crop; None for sentences, and for view 0 of images.
        from_pixels: the crops are cut from the stored pixels, not from the originals.
        numerics: kinds of arithmetic that made the parts already there.
    """

    target: ArrayTarget
    rule: ViewRule | None = None
    from_pixels: bool = False
    numerics: tuple[str, ...] = ()


@dataclass(frozen=True)
class PixelsOutput:
    """The stored pixels that parts are committed to."""

    layout: Layout
    recipe: PixelsRecipe


class PartInProgress:
    """The samples of one part as they come in, and the seconds that each stage took."""

    def __init__(self, task: PartTask, samples: Sequence[Sample] = ()) -> None:
        self.task = task
        self.samples = list(samples)
        self.jpegs: dict[int, bytes] = {}
        self.seconds = dict.fromkeys(("read", "decode", "forward", "write"), 0.0)
        self._source_of = [span.source for span in task.part.spans for _ in range(span.num_samples)]

    def add_image(self, raw: RawSample, digest: bytes | None, prepared: Prepared) -> Sample:
        """Adds the next row: what its source gave, and what became of it."""
        if raw.status != OK:
            return self._add(raw, digest)
        reason = " ".join(filter(None, (raw.reason, prepared.reason)))
        size = {"width": prepared.width or None, "height": prepared.height or None}
        return self._add(raw, digest, status=prepared.status, reason=reason, **size)

    def add_text(self, raw: RawSample, limits: Limits) -> Sample:
        """Adds the next row: what its source gave, cleaned."""
        digest = None if raw.payload is None else digest_of(raw.payload)
        if raw.status != OK or raw.payload is None:
            return self._add(raw, digest)
        clean = clean_text(raw.payload, limits)
        return self._add(raw, digest, status=clean.status, reason=clean.reason, text=clean.text)

    def _add(self, raw: RawSample, digest: bytes | None, **fields: object) -> Sample:
        offset = len(self.samples)
        sample = Sample(
            row=self.task.part.first_row + offset,
            key=raw.key,
            source=self._source_of[offset],
            offset_bytes=raw.offset_bytes,
            size_bytes=raw.size_bytes,
            digest=digest,
            **{"status": raw.status, "reason": raw.reason, **fields},  # type: ignore[arg-type]
        )
        self.samples.append(sample)
        return sample

    def pixel_rows(self) -> list[PixelRow]:
        """Returns what is stored of every row: the JPEGs in `jpegs`, by offset."""
        return [PixelRow(sample.digest, self.jpegs.get(offset)) for offset, sample in enumerate(self.samples)]

    def source_shrank(self, num_read: int) -> MismatchError:
        """Returns the error for sources that gave fewer samples than were planned."""
        task = self.task
        return MismatchError(
            f"part {task.part.number} of the {task.modality}s has {task.part.num_rows} planned rows, its sources gave "
            f"{num_read}: a source changed after it was planned; restore it and run again"
        )

    @contextmanager
    def measured(self, name: str, *, minus: str | None = None) -> Iterator[None]:
        """Adds the time spent inside to `seconds[name]`, less what was meanwhile added to `seconds[minus]`."""
        start, inner = time.perf_counter(), self.seconds[minus] if minus else 0.0
        try:
            yield
        finally:
            spent = self.seconds[minus] - inner if minus else 0.0
            self.seconds[name] += time.perf_counter() - start - spent


class ArrayInProgress:
    """The features, exceptions and view checks of one part of one array as they come in."""

    def __init__(self, output: ArrayOutput, num_rows: int) -> None:
        self.output = output
        self.features_BD = np.full((num_rows, output.target.row_format.width), np.nan, np.float16)
        self.exceptions: dict[int, RowException] = {}
        self._checks = np.zeros((num_rows, VIEW_CHECK_BYTES), np.uint8)

    @property
    def view_checks(self) -> bytes | None:
        """Returns 4 bytes per row, zeros where there is no feature; None where there is nothing to check."""
        if self.output.rule is None:
            return None
        checks = self._checks.copy()
        checks[~np.isfinite(self.features_BD).all(axis=1)] = 0
        return checks.tobytes()

    def store(self, offsets: list[int], features_BD: np.ndarray) -> None:
        """Keeps the features of the rows at `offsets`; rows beyond them are padding."""
        stored, refused = storable(features_BD[: len(offsets)])
        self.features_BD[offsets] = stored
        for place, status in refused.items():
            self.exceptions[offsets[place]] = RowException(offsets[place], status, "")

    def store_check(self, offset: int, check: bytes) -> None:
        """Keeps the view check of the row at `offset`."""
        self._checks[offset] = np.frombuffer(check, np.uint8)

    def note_truncation(self, offsets: list[int], texts: list[str], teacher: Teacher) -> None:
        """Notes for every sentence that the teacher cuts how many tokens it has."""
        counts = teacher.count_tokens(texts) if teacher.context_length is not None else None
        for offset, count in zip(offsets, counts or (), strict=False):
            if count > (teacher.context_length or 0):
                self.exceptions[offset] = RowException(offset, OK, f"truncated: {count} tokens")
