"""Crops of pictures, by row: from memory where all of them fit, else decoded anew for every visit.

Pictures are the originals, or the small JPEGs that a cache may store.

Small corpora are visited hundreds of times, and decoding costs more than a small student's step, so their pictures stay
decoded in memory. Larger ones go through decode processes, which may then decode a JPEG at a fraction of its size.
Which of the two it is depends on the corpus and the limit alone, never on what happens to be free, and is kept in the
run's record: the pixels differ a little.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache_schema.cache import Cache, ImageLocation
from cache_schema.errors import EnvironmentProblem, MismatchError
from cache_schema.view_checks import VIEW_CHECK_BYTES
from stages.distill.payloads import Payloads, SmallPictures
from stages.images.crops import Crop
from stages.images.decode import Limits, decode_image
from stages.images.pool import DecodePool
from stages.images.prepare import Prepared, Request, TrainingPreparation
from stages.images.preprocess import CropShape, crop_pixels
from stages.images.views import check_of

_BYTES_PER_PIXEL = 4
_LOAD_AT_ONCE = 256
_CROP_AT_ONCE = 16
DECODES_OF_A_PICTURE = 3
# Bytes that were decoded before say nothing of the picture when a decoder is killed or late.
OF_THE_MACHINE = ("img-timeout", "img-decoder-died")


class Pictures(ABC):
    """The pixels of training, by row. Use it as a context manager, or call `close`."""

    @abstractmethod
    def crops(
        self,
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> "Crops":
        """Returns one crop of every row in every shape, in the order asked, and the view checks of those `to_check`.

        Raises:
            MismatchError: an original is not the picture that the teacher saw; names its key.
            EnvironmentProblem: a decode process is killed or late again and again.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends threads and processes."""

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Crops(NamedTuple):
    """Crops of pictures: uint8 pixels BHWC by shape, and 4 bytes of view check, zeros where none was wanted."""

    pixels: Mapping[CropShape, NDArray[np.uint8]]
    checks_B4: NDArray[np.uint8]

    @classmethod
    def empty(cls, num_rows: int, shapes: Sequence[CropShape]) -> "Crops":
        """Returns room for `num_rows` crops."""
        pixels = {shape: np.empty((num_rows, *shape.size, 3), np.uint8) for shape in shapes}
        return cls(pixels, np.zeros((num_rows, VIEW_CHECK_BYTES), np.uint8))


class PicturesInMemory(Pictures):
    """All pictures, decoded once and kept; crops are cut by threads, which Pillow lets run side by side.

    Args:
        cache: that the rows belong to.
        rows: that will be asked for, decoded now; any other is decoded when it is asked for.
        shapes: in which every crop is wanted.
        payloads: where the bytes come from.
        num_threads: that decode and crop.
        progress: called as `progress(done, total, unit)` while loading.
    """

    def __init__(
        self,
        cache: Cache,
        rows: NDArray[np.int64],
        shapes: Sequence[CropShape],
        payloads: Payloads,
        *,
        num_threads: int,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._shapes = tuple(shapes)
        self._threads = ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="crop")
        self._images: dict[int, Image.Image] = {}
        self._cache, self._payloads = cache, payloads
        for first in range(0, len(rows), _LOAD_AT_ONCE):
            self._load(rows[first : first + _LOAD_AT_ONCE])
            if progress is not None:
                progress(len(self._images), len(rows), "pictures")

    def crops(
        self,
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> Crops:
        absent = np.unique([row for row in rows.tolist() if row not in self._images]).astype(np.int64)
        for first in range(0, len(absent), _LOAD_AT_ONCE):
            self._load(absent[first : first + _LOAD_AT_ONCE])
        found = Crops.empty(len(rows), self._shapes)

        def fill(first: int) -> None:
            for place in range(first, min(first + _CROP_AT_ONCE, len(rows))):
                image, crop = self._images[int(rows[place])], crops[place]
                for shape, pixels_BHWC in found.pixels.items():
                    pixels_BHWC[place] = crop_pixels(image, crop, shape)
                if to_check[place]:
                    found.checks_B4[place] = np.frombuffer(check_of(image, crop), np.uint8)

        list(self._threads.map(fill, range(0, len(rows), _CROP_AT_ONCE)))
        return found

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _load(self, rows: NDArray[np.int64]) -> None:
        """Decodes `rows`, ascending: in the order of the sources, compressed containers are read from front to end."""
        locations = self._cache.locations(rows)
        data = [self._payloads.payload(row, location) for row, location in zip(rows.tolist(), locations, strict=True)]
        self._images.update(zip(rows.tolist(), self._threads.map(_decoded, data, locations), strict=True))


class PicturesStreamed(Pictures):
    """Every crop is read and decoded when it is asked for, in `num_workers` processes (0 decodes inline).

    Args:
        shapes: in which every crop is wanted.
        payloads: where the bytes come from.
        num_workers: decode processes.
        reduce_for: (height, width) for which a JPEG may be decoded at a fraction of its size; None, as replayed views
            need it, decodes every JPEG at its full size.
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
        limits: Limits | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self._preparation = TrainingPreparation(tuple(shapes), reduce_for, limits or Limits())
        self._pool = DecodePool(num_workers, self._preparation)
        self._payloads = payloads
        self._notice = notice

    def crops(
        self,
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> Crops:
        found = Crops.empty(len(rows), self._preparation.shapes)
        # In the order of the sources, see above.
        left = np.argsort(rows, kind="stable").tolist()
        for attempt in range(DECODES_OF_A_PICTURE):
            late: list[tuple[int, Prepared]] = []
            requests = self._requests(left, rows, locations, crops, to_check)
            for place, prepared in zip(left, self._pool.map(requests), strict=True):
                if prepared.pixels is None and prepared.status in OF_THE_MACHINE:
                    late.append((place, prepared))
                elif prepared.pixels is None:
                    raise not_decodable(locations[place], prepared.status, prepared.reason)
                else:
                    for pixels_BHWC, pixels_HWC in zip(
                        found.pixels.values(), self._preparation.cut(prepared.pixels), strict=True
                    ):
                        pixels_BHWC[place] = pixels_HWC
                    if to_check[place]:
                        found.checks_B4[place] = np.frombuffer(prepared.checks, np.uint8)
            if not late:
                return found
            left = [place for place, _ in late]
            self._say_late(locations[left[0]], len(left), late[0][1], is_first=attempt == 0)
        place, prepared = late[0]
        raise EnvironmentProblem(
            f"{locations[place].key!r} in {locations[place].uri} was decoded when the teacher saw it, and "
            f"{len(late):,} pictures of this step failed {DECODES_OF_A_PICTURE} times ({prepared.status}: "
            f"{prepared.reason}): this machine lacks time or memory for its decode processes; use fewer "
            "--decode-workers or free it, and run again"
        )

    def close(self) -> None:
        self._pool.close()

    def _requests(
        self,
        places: Sequence[int],
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> Iterator[Request]:
        for place in places:
            yield self._payloads.payload(int(rows[place]), locations[place]), (crops[place], bool(to_check[place]))

    def _say_late(self, location: ImageLocation, num_late: int, prepared: Prepared, *, is_first: bool) -> None:
        if self._notice is not None and is_first:
            self._notice(
                f"{num_late:,} pictures are decoded again, among them {location.key!r} in {location.uri} "
                f"({prepared.status}: {prepared.reason})"
            )


def fit_in_memory(cache: Cache, rows: NDArray[np.int64], limit_bytes: int, small: SmallPictures | None = None) -> bool:
    """Returns whether all pictures of `rows` fit decoded into `limit_bytes`, from their sizes in the sample tables.

    The originals, or where `small` is given the stored pictures made from them.
    """
    total = 0
    parts = rows // cache.part_rows
    for part in np.unique(parts):
        for size in cache.sample_rows("image", rows[parts == part], ["width", "height"]):
            width, height = size["width"], size["height"]
            total += prod((width, height) if small is None else small.size(width, height)) * _BYTES_PER_PIXEL
        if total > limit_bytes:
            return False
    return True


def _decoded(payload: bytes, location: ImageLocation) -> Image.Image:
    # In this process: these very bytes, as their digest says, went through a decode process before.
    decoded = decode_image(payload, Limits())
    if decoded.image is None:
        raise not_decodable(location, decoded.status, decoded.reason)
    return decoded.image


def not_decodable(location: ImageLocation, status: str, reason: str) -> MismatchError:
    """Returns the error for a picture that this Pillow cannot decode although that of extract could."""
    return MismatchError(
        f"{location.key!r} in {location.uri} could be decoded when the teacher saw it and cannot now ({status}: "
        f"{reason}): install the Pillow that extract had, or extract into a new cache"
    )
