"""Crops of pictures that do not fit into memory: read and decoded anew for every visit, in decode processes."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cache_schema.cache import ImageLocation
from cache_schema.errors import EnvironmentProblem
from cache_schema.view_checks import VIEW_CHECK_BYTES
from stages.distill.payloads import Payloads
from stages.distill.pictures import (
    DECODES_OF_A_PICTURE,
    OF_THE_MACHINE,
    TASKS_AHEAD,
    BegunCrops,
    Crops,
    Pictures,
    not_decodable,
)
from stages.files.compressed import compression_of
from stages.images.crops import Crop
from stages.images.decode import Limits
from stages.images.pool import DecodePool, Filled
from stages.images.pool_child import BATCH_PAYLOADS
from stages.images.prepare import Prepared, Request, TrainingPreparation
from stages.images.preprocess import CropShape


class PicturesStreamed(Pictures):
    """Every crop is read and decoded when it is asked for, in `num_workers` processes (0 decodes in this one).

    Threads read: one for every worker and `num_readers` more, so that as many tasks of at most 16 pictures are read at
    a time or wait, read, for a worker. That bounds the memory of payloads.

    Args:
        shapes: in which every crop is wanted.
        payloads: where the bytes come from.
        num_workers: decode processes.
        reduce_for: (height, width) for which a JPEG may be decoded at a fraction of its size; None, as replayed views
            need it, decodes every JPEG at its full size.
        num_readers: more threads that read; pictures far away take many.
        limits: what one payload may cost.
        notice: called with a sentence about pictures that had to be decoded again.
    """

    def __init__(
        self,
        shapes: Sequence[CropShape],
        payloads: Payloads,
        *,
        num_workers: int,
        reduce_for: tuple[int, int] | None,
        num_readers: int | None = None,
        limits: Limits | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self._preparation = TrainingPreparation(tuple(shapes), reduce_for, limits or Limits())
        readers = max(1, num_workers) if num_readers is None else num_readers
        self._pool = DecodePool(num_workers, self._preparation, num_readers=readers)
        self._payloads = payloads
        self._notice = notice
        self._last_in_turn = threading.Event()
        self._last_in_turn.set()

    def begin(
        self,
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> BegunCrops:
        begun = _Begun(self, rows, locations, crops, to_check)
        # In the order of the sources, so that compressed containers are read once from front to end.
        begun.fill(np.argsort(rows, kind="stable").tolist())
        return begun

    @property
    def num_begun(self) -> int:
        return TASKS_AHEAD * BATCH_PAYLOADS * max(1, self._pool.num_workers)

    def close(self) -> None:
        self._pool.close()

    def _say_late(self, location: ImageLocation, num_late: int, prepared: Prepared) -> None:
        if self._notice is not None:
            self._notice(
                f"{num_late:,} pictures are decoded again, among them {location.key!r} in {location.uri} "
                f"({prepared.status}: {prepared.reason})"
            )

    def _in_turn(self, read: Callable[[], list[Request]]) -> Callable[[], list[Request]]:
        """Returns `read` so that it waits for the one before it; the pool begins in order, so that one has begun."""
        before, self._last_in_turn = self._last_in_turn, threading.Event()
        return partial(_read_in_turn, read, before, self._last_in_turn)


class _Begun:
    """Crops that decode processes write into a slab, one row a crop."""

    def __init__(
        self,
        pictures: PicturesStreamed,
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> None:
        self._pictures = pictures
        self._rows = rows
        self._locations = locations
        self._crops = crops
        self._to_check = to_check
        self._slab = pictures._pool.lease(len(rows))
        self._tasks: list[tuple[list[int], Future[Filled]]] = []

    def fill(self, places: Sequence[int]) -> None:
        """Begins to fill the rows at those places."""
        pool = self._pictures._pool
        most = pool.payloads_of_a_task(len(places))
        for first in range(0, len(places), most):
            some = list(places[first : first + most])
            read: Callable[[], list[Request]] = partial(self._requests, some)
            if any(compression_of(uri) for uri in {self._locations[place].uri for place in some}):
                read = self._pictures._in_turn(read)
            self._tasks.append((some, pool.fill(read, self._slab, some)))

    def result(self) -> Crops:
        checks_B4 = np.zeros((len(self._rows), VIEW_CHECK_BYTES), np.uint8)
        seconds = {"read": 0.0, "decode": 0.0}
        for attempt in range(DECODES_OF_A_PICTURE):
            late = self._taken(checks_B4, seconds)
            if not late:
                pixels_BP = self._slab.pixels
                return Crops(self._pictures._preparation.cut(pixels_BP), pixels_BP, checks_B4, seconds)
            first, prepared = late[0]
            location = self._locations[first]
            if attempt == 0:
                self._pictures._say_late(location, len(late), prepared)
            if attempt < DECODES_OF_A_PICTURE - 1:
                self.fill([place for place, _ in late])
        raise EnvironmentProblem(
            f"{location.key!r} in {location.uri} was decoded when the teacher saw it, and "
            f"{len(late):,} pictures of this step failed {DECODES_OF_A_PICTURE} times ({prepared.status}: "
            f"{prepared.reason}): this machine lacks time or memory for its decode processes; use fewer "
            "--decode-workers or free it, and run again"
        )

    def _taken(self, checks_B4: NDArray[np.uint8], seconds: dict[str, float]) -> list[tuple[int, Prepared]]:
        """Waits for what is begun, and returns the places where the machine was late, with what was said of each."""
        pool = self._pictures._pool
        tasks, self._tasks = self._tasks, []
        late = []
        for places, task in tasks:
            results, read_seconds, decode_seconds = task.result()
            seconds["read"] += read_seconds / pool.num_threads
            seconds["decode"] += decode_seconds / max(1, pool.num_workers)
            for place, prepared in zip(places, results, strict=True):
                if prepared.status in OF_THE_MACHINE:
                    late.append((place, prepared))
                elif prepared.status != "ok":
                    raise not_decodable(self._locations[place], prepared.status, prepared.reason)
                elif self._to_check[place]:
                    checks_B4[place] = np.frombuffer(prepared.checks, np.uint8)
        return late

    def _requests(self, places: Sequence[int]) -> list[Request]:
        """Reads the payloads of those places."""
        return [self._request(place) for place in places]

    def _request(self, place: int) -> Request:
        # Whoever closes the pool need not wait for all that this thread was to read.
        self._pictures._pool.require_open()
        payload = self._pictures._payloads.payload(int(self._rows[place]), self._locations[place])
        return payload, (self._crops[place], bool(self._to_check[place]))


def _read_in_turn(read: Callable[[], list[Request]], before: threading.Event, done: threading.Event) -> list[Request]:
    before.wait()
    try:
        return read()
    finally:
        done.set()
