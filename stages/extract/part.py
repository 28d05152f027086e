"""The places that a part of extract is committed to, and its features while it is encoded."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from cache_schema.commit import ArrayTarget
from cache_schema.features import storable
from cache_schema.layout import Layout
from cache_schema.pixels import PixelsRecipe
from cache_schema.records import RowException
from cache_schema.samples import OK, Sample
from cache_schema.view_checks import VIEW_CHECK_BYTES
from stages.extract.reader import Row
from stages.images.decode import TOO_MANY_PIXELS
from stages.images.views import ViewRule
from stages.parts.fatal_rows import WORKER_DIED
from stages.parts.pending import PartTask
from stages.teachers import Teacher


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


@dataclass(frozen=True)
class ImageBatch:
    """Consecutive rows of a part of images, ready for one forward pass.

    Attributes:
        samples: of all its rows.
        offsets: in the part, of those that are pictures; at most as many as a forward pass takes.
        pixels_of_view: of every wanted view, the normalised pixels_BCHW, padded to a whole batch.
        checks: of every picture, those of the wanted crops, one after the other.
        jpegs: of every picture, as it is to be stored; empty where it is not.
        too_long: of every picture, why the teacher's own preprocessing of it cannot be done; empty where it can.
    """

    samples: list[Sample]
    offsets: list[int]
    pixels_of_view: list[np.ndarray]
    checks: list[bytes]
    jpegs: list[bytes]
    too_long: list[str]


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

    def store(self, offsets: Sequence[int], features_BD: np.ndarray) -> None:
        """Keeps the features of the rows at `offsets`; rows beyond them are padding."""
        stored, refused = storable(features_BD[: len(offsets)])
        self.features_BD[offsets] = stored
        for place, status in refused.items():
            self.exceptions[offsets[place]] = RowException(offsets[place], status, "")

    def set_aside(self, offsets: Sequence[int], too_long: Sequence[str]) -> None:
        """Takes back, of the rows at `offsets`, the features of pictures that are too long for the teacher's input."""
        for offset, reason in zip(offsets, too_long, strict=True):
            if reason:
                self.features_BD[offset] = np.nan
                self.exceptions[offset] = RowException(offset, TOO_MANY_PIXELS, reason)

    def store_checks(self, offsets: Sequence[int], checks: Sequence[bytes], place: int) -> None:
        """Keeps the view checks of the rows at `offsets`: of each row's `checks`, one a crop, the one at `place`."""
        for offset, of_crops in zip(offsets, checks, strict=True):
            check = of_crops[place * VIEW_CHECK_BYTES : (place + 1) * VIEW_CHECK_BYTES]
            self._checks[offset] = np.frombuffer(check, np.uint8)

    def hold_back(self, samples: Sequence[Sample], fatal: Mapping[int, str]) -> None:
        """Leaves the ok rows of `samples` without a feature of which workers died; `fatal` has offset -> how."""
        for offset, how in fatal.items():
            if samples[offset].status == OK:
                self.features_BD[offset] = np.nan
                self.exceptions[offset] = RowException(offset, WORKER_DIED, how)

    def note_truncation(self, offsets: Sequence[int], texts: list[str], teacher: Teacher) -> None:
        """Notes for every sentence that the teacher cuts how many tokens it has."""
        counts = teacher.count_tokens(texts) if teacher.context_length is not None else None
        for offset, count in zip(offsets, counts or (), strict=False):
            if count > (teacher.context_length or 0):
                self.exceptions[offset] = RowException(offset, OK, f"truncated: {count} tokens")


def rows_to_show(rows: Iterator[Row], task: PartTask) -> Iterator[Row]:
    """Yields those of the `rows` of a part that `task` looks at, those that workers die of with a blank picture."""
    shown = rows if task.only is None else islice(rows, task.only.start, task.only.stop)
    for row in shown:
        if row.offset in task.fatal and row.picture is not None and row.picture.pixels is not None:
            yield row._replace(picture=replace(row.picture, pixels=np.zeros_like(row.picture.pixels)))
        else:
            yield row


def in_batches(rows: Iterable[Row], batch_size: int) -> Iterator[list[Row]]:
    """Yields `rows` in order, with `batch_size` ok ones in every batch but the last; bad ones travel along."""
    batch: list[Row] = []
    num_ok = 0
    for row in rows:
        batch.append(row)
        num_ok += row.sample.status == OK
        if num_ok == batch_size:
            yield batch
            batch, num_ok = [], 0
    if batch:
        yield batch
