"""Crops of the original pictures, by row: from memory where all of them fit, else decoded anew for every visit.

Small corpora are visited hundreds of times, and decoding costs more than a small student's step, so their pictures stay
decoded in memory. Larger ones go through decode processes, which may then decode a JPEG at a fraction of its size.
Which of the two it is depends on the corpus and the limit alone, never on what happens to be free, and is kept in the
run's record: the pixels differ a little.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache_schema.cache import Cache, ImageLocation
from cache_schema.errors import MismatchError
from cache_schema.samples import digest_of
from stages.decode import Limits, decode_image
from stages.decode_pool import DecodePool
from stages.prepare import PreparePlan
from stages.preprocess import Preprocess, crop_pixels
from stages.sources import Source, open_source
from stages.views import Crop

_BYTES_PER_PIXEL = 4
_LOAD_AT_ONCE = 256
_CROP_AT_ONCE = 16


class Pictures(ABC):
    """Where training gets its pixels from. Use it as a context manager, or call `close`."""

    @abstractmethod
    def crops(
        self, rows: NDArray[np.int64], locations: Sequence[ImageLocation], crops: Sequence[Crop]
    ) -> NDArray[np.uint8]:
        """Returns pixels_BHWC: one crop of every row, in the order asked.

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


class Originals:
    """Reads the payloads of image rows from their sources, each compared with the digest in the sample table."""

    def __init__(self) -> None:
        self._sources: dict[tuple[str, str], Source] = {}

    def payload(self, location: ImageLocation) -> bytes:
        """Returns the bytes at `location`; raises `MismatchError` when they are others than the teacher saw."""
        place = (location.kind, location.uri)
        if place not in self._sources:
            self._sources[place] = open_source(location.uri, location.kind, "image", dict(location.options))
        payload = self._sources[place].read_one(location.key, location.offset_bytes, location.size_bytes)
        if digest_of(payload) != location.digest:
            raise MismatchError(
                f"{location.key!r} in {location.uri} has digest {digest_of(payload).hex()[:12]}, the teacher saw "
                f"{location.digest.hex()[:12]}: restore the original, or extract the changed source into a new cache"
            )
        return payload


class PicturesInMemory(Pictures):
    """All pictures, decoded once and kept; crops are cut by threads, which Pillow lets run side by side.

    Args:
        cache: that the rows belong to.
        rows: all rows that will ever be asked for.
        preprocess: of the student; its size, interpolation, mean and std.
        num_threads: that decode and crop.
        progress: called as `progress(done, total, unit)` while loading.
    """

    def __init__(
        self,
        cache: Cache,
        rows: NDArray[np.int64],
        preprocess: Preprocess,
        *,
        num_threads: int,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._preprocess = preprocess
        self._threads = ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="crop")
        self._images: dict[int, Image.Image] = {}
        originals = Originals()
        # In the order of the sources, so that compressed containers are read once from front to end.
        for first in range(0, len(rows), _LOAD_AT_ONCE):
            some = rows[first : first + _LOAD_AT_ONCE]
            locations = cache.locations(some)
            payloads = [originals.payload(location) for location in locations]
            self._images.update(zip(some.tolist(), self._threads.map(_decoded, payloads, locations), strict=True))
            if progress is not None:
                progress(len(self._images), len(rows), "pictures")

    def crops(
        self, rows: NDArray[np.int64], locations: Sequence[ImageLocation], crops: Sequence[Crop]
    ) -> NDArray[np.uint8]:
        pixels_BHWC = np.empty((len(rows), *self._preprocess.size, 3), np.uint8)

        def fill(first: int) -> None:
            for place in range(first, min(first + _CROP_AT_ONCE, len(rows))):
                pixels_BHWC[place] = crop_pixels(self._images[int(rows[place])], crops[place], self._preprocess)

        list(self._threads.map(fill, range(0, len(rows), _CROP_AT_ONCE)))
        return pixels_BHWC

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


class PicturesStreamed(Pictures):
    """Every crop is read and decoded when it is asked for, in `num_workers` processes (0 decodes inline)."""

    def __init__(self, preprocess: Preprocess, *, num_workers: int) -> None:
        self._pool = DecodePool(num_workers, PreparePlan(preprocess, reduce_jpeg=True))
        self._size = preprocess.size
        self._originals = Originals()

    def crops(
        self, rows: NDArray[np.int64], locations: Sequence[ImageLocation], crops: Sequence[Crop]
    ) -> NDArray[np.uint8]:
        pixels_BHWC = np.empty((len(rows), *self._size, 3), np.uint8)
        # In the order of the sources, see above.
        places = np.argsort(rows, kind="stable").tolist()

        def jobs() -> Iterator[tuple[bytes, Crop | None]]:
            return ((self._originals.payload(locations[place]), crops[place]) for place in places)

        for place, prepared in zip(places, self._pool.map(jobs()), strict=True):
            if prepared.pixels is None:
                raise _not_decodable(locations[place], prepared.status, prepared.reason)
            pixels_BHWC[place] = prepared.pixels
        return pixels_BHWC

    def close(self) -> None:
        self._pool.close()


def fit_in_memory(cache: Cache, rows: NDArray[np.int64], limit_bytes: int) -> bool:
    """Returns whether all pictures of `rows` fit decoded into `limit_bytes`, from their sizes in the sample tables."""
    total = 0
    parts = rows // cache.part_rows
    for part in np.unique(parts):
        for size in cache.sample_rows("image", rows[parts == part], ["width", "height"]):
            total += size["width"] * size["height"] * _BYTES_PER_PIXEL
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
