"""Crops of pictures, by row: from memory where all of them fit, else decoded anew for every visit.

Pictures are the originals, or the small JPEGs that a cache may store.

Small corpora are visited hundreds of times, and decoding costs more than a small student's step, so their pictures stay
decoded in memory. Larger ones go through decode processes, which may then decode a JPEG at a fraction of its size.
Which of the two it is depends on the corpus and the limit alone, never on what happens to be free, and is kept in the
run's record: the pixels differ a little.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache_schema.cache import Cache, ImageLocation
from cache_schema.errors import MismatchError
from cache_schema.view_checks import VIEW_CHECK_BYTES
from stages.distill.payloads import Payloads, SmallPictures
from stages.images.crops import Crop
from stages.images.decode import Limits, decode_image
from stages.images.pool import DecodePool
from stages.images.prepare import CropPreparation, Preparation, ReplayPreparation, Request
from stages.images.preprocess import Preprocess, crop_pixels
from stages.images.views import check_of

_BYTES_PER_PIXEL = 4
_LOAD_AT_ONCE = 256
_CROP_AT_ONCE = 16


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
        """Returns one crop of every row, in the order asked, and the view checks of those `to_check`.

        Raises:
            MismatchError: an original is not the picture that the teacher saw; names its key.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends threads and processes."""

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Crops(NamedTuple):
    """Crops of pictures: uint8 pixels, and 4 bytes of view check, zeros where none was wanted."""

    pixels_BHWC: NDArray[np.uint8]
    checks_B4: NDArray[np.uint8]

    @classmethod
    def empty(cls, num_rows: int, size: tuple[int, int]) -> "Crops":
        """Returns room for `num_rows` crops."""
        pixels_BHWC = np.empty((num_rows, *size, 3), np.uint8)
        return cls(pixels_BHWC, np.zeros((num_rows, VIEW_CHECK_BYTES), np.uint8))


class PicturesInMemory(Pictures):
    """All pictures, decoded once and kept; crops are cut by threads, which Pillow lets run side by side.

    Args:
        cache: that the rows belong to.
        rows: all rows that will ever be asked for.
        preprocess: the preprocessing of the student; its size, interpolation, mean and std.
        payloads: where the bytes come from.
        num_threads: that decode and crop.
        progress: called as `progress(done, total, unit)` while loading.
    """

    def __init__(
        self,
        cache: Cache,
        rows: NDArray[np.int64],
        preprocess: Preprocess,
        payloads: Payloads,
        *,
        num_threads: int,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._preprocess = preprocess
        self._threads = ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="crop")
        self._images: dict[int, Image.Image] = {}
        # In the order of the sources, so that compressed containers are read once from front to end.
        for first in range(0, len(rows), _LOAD_AT_ONCE):
            some = rows[first : first + _LOAD_AT_ONCE]
            locations = cache.locations(some)
            data = [payloads.payload(row, location) for row, location in zip(some.tolist(), locations, strict=True)]
            self._images.update(zip(some.tolist(), self._threads.map(_decoded, data, locations), strict=True))
            if progress is not None:
                progress(len(self._images), len(rows), "pictures")

    def crops(
        self,
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> Crops:
        found = Crops.empty(len(rows), self._preprocess.size)

        def fill(first: int) -> None:
            for place in range(first, min(first + _CROP_AT_ONCE, len(rows))):
                image, crop = self._images[int(rows[place])], crops[place]
                found.pixels_BHWC[place] = crop_pixels(image, crop, self._preprocess)
                if to_check[place]:
                    found.checks_B4[place] = np.frombuffer(check_of(image, crop), np.uint8)

        list(self._threads.map(fill, range(0, len(rows), _CROP_AT_ONCE)))
        return found

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


class PicturesStreamed(Pictures):
    """Every crop is read and decoded when it is asked for, in `num_workers` processes (0 decodes inline).

    Args:
        preprocess: the preprocessing of the student.
        payloads: where the bytes come from.
        num_workers: decode processes.
        exact: decode every JPEG at its full size, as replayed views need it; else at a fraction where a crop allows.
    """

    def __init__(self, preprocess: Preprocess, payloads: Payloads, *, num_workers: int, exact: bool) -> None:
        self._exact = exact
        preparation: Preparation = (
            ReplayPreparation(preprocess) if exact else CropPreparation(preprocess, reduce_jpeg=True)
        )
        self._pool = DecodePool(num_workers, preparation)
        self._size = preprocess.size
        self._payloads = payloads

    def crops(
        self,
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> Crops:
        assert self._exact or not to_check.any(), "a check needs the picture at its full size"
        found = Crops.empty(len(rows), self._size)
        # In the order of the sources, see above.
        places = np.argsort(rows, kind="stable").tolist()

        def requests() -> Iterator[Request]:
            for place in places:
                wanted = (crops[place], bool(to_check[place])) if self._exact else crops[place]
                yield self._payloads.payload(int(rows[place]), locations[place]), wanted

        for place, prepared in zip(places, self._pool.map(requests()), strict=True):
            if prepared.pixels is None:
                raise _not_decodable(locations[place], prepared.status, prepared.reason)
            found.pixels_BHWC[place] = prepared.pixels
            if to_check[place]:
                found.checks_B4[place] = np.frombuffer(prepared.checks, np.uint8)
        return found

    def close(self) -> None:
        self._pool.close()


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
        raise _not_decodable(location, decoded.status, decoded.reason)
    return decoded.image


def _not_decodable(location: ImageLocation, status: str, reason: str) -> MismatchError:
    return MismatchError(
        f"{location.key!r} in {location.uri} could be decoded when the teacher saw it and cannot now ({status}: "
        f"{reason}): install the Pillow that extract had, or extract into a new cache"
    )
