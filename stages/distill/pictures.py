"""Crops of pictures, by row: from memory where all of them fit, else decoded anew for every visit.

Pictures are the originals, or the small JPEGs that a cache may store.

Small corpora are visited hundreds of times, and decoding costs more than a small student's step, so their pictures stay
decoded in memory. Larger ones go through decode processes (`streamed_pictures.py`), which may then decode a JPEG at a
fraction of its size.
Which of the two it is depends on the corpus and the limit alone, never on what happens to be free, and is kept in the
run's record: the pixels differ a little.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache_schema.cache import Cache, ImageLocation
from cache_schema.errors import MismatchError
from cache_schema.view_checks import VIEW_CHECK_BYTES
from stages.distill.payloads import Payloads, SmallPictures
from stages.distill.rows import rows_by_part
from stages.images.crops import Crop
from stages.images.decode import Limits, decode_image
from stages.images.prepare import TrainingPreparation
from stages.images.preprocess import CropShape, crop_pixels
from stages.images.shared_pixels import SharedPixels
from stages.images.views import check_of

_BYTES_PER_PIXEL = 4
_LOAD_AT_ONCE = 256
_CROP_AT_ONCE = 16
TASKS_AHEAD = 4
"""Tasks of a worker, begun and not yet needed, that keep it busy across the edges of batches."""
DECODES_OF_A_PICTURE = 3
# Bytes that were decoded before say nothing of the picture when a decoder is killed or late.
OF_THE_MACHINE = ("img-timeout", "img-decoder-died")


class Crops(NamedTuple):
    """Crops of pictures: uint8 pixels BHWC by shape, and 4 bytes of view check, zeros where none was wanted.

    `pixels` are views of `pixels_BP`, in which those of all shapes of a picture follow each other. `seconds` by phase
    are those of the workers and readers, divided by their number.
    """

    pixels: Mapping[CropShape, NDArray[np.uint8]]
    pixels_BP: NDArray[np.uint8]
    checks_B4: NDArray[np.uint8]
    seconds: Mapping[str, float]


class BegunCrops(Protocol):
    """Crops that are being made."""

    def result(self) -> Crops:
        """Returns them, in the order asked, when all are there.

        Raises:
            MismatchError: an original is not the picture that the teacher saw; names its key.
            EnvironmentProblem: a decode process is killed or late again and again.
        """
        ...


class Pictures(ABC):
    """The pixels of training, by row. Use it as a context manager, or call `close`."""

    @abstractmethod
    def begin(
        self,
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> BegunCrops:
        """Begins to make one crop of every row in every shape, and the view checks of those `to_check`.

        What is begun first is made first, and workers go on with the next as soon as one of them has nothing to do. Its
        pixels lie in memory that is used again once nobody keeps any of them.
        """

    def crops(
        self,
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> Crops:
        """Returns what `begin` makes; raises as its result does."""
        return self.begin(rows, locations, crops, to_check).result()

    @property
    @abstractmethod
    def num_begun(self) -> int:
        """Returns how many pictures keep every worker busy while some more are begun."""

    @abstractmethod
    def close(self) -> None:
        """Ends threads and processes."""

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        self._preparation = TrainingPreparation(tuple(shapes))
        self._memory = SharedPixels(self._preparation.shape)
        self._num_threads = max(1, num_threads)
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="crop")
        self._images: dict[int, Image.Image] = {}
        self._cache, self._payloads = cache, payloads
        for first in range(0, len(rows), _LOAD_AT_ONCE):
            self._load(rows[first : first + _LOAD_AT_ONCE])
            if progress is not None:
                progress(len(self._images), len(rows), "pictures")

    def begin(
        self,
        rows: NDArray[np.int64],
        locations: Sequence[ImageLocation],
        crops: Sequence[Crop],
        to_check: NDArray[np.bool_],
    ) -> "BegunCrops":
        absent = np.unique([row for row in rows.tolist() if row not in self._images]).astype(np.int64)
        for first in range(0, len(absent), _LOAD_AT_ONCE):
            self._load(absent[first : first + _LOAD_AT_ONCE])
        pixels_BP = self._memory.lease(len(rows)).pixels
        pixels = self._preparation.cut(pixels_BP)
        checks_B4 = np.zeros((len(rows), VIEW_CHECK_BYTES), np.uint8)

        def fill(first: int) -> float:
            started = time.perf_counter()
            for place in range(first, min(first + _CROP_AT_ONCE, len(rows))):
                image, crop = self._images[int(rows[place])], crops[place]
                for shape, pixels_BHWC in pixels.items():
                    pixels_BHWC[place] = crop_pixels(image, crop, shape)
                if to_check[place]:
                    checks_B4[place] = np.frombuffer(check_of(image, crop), np.uint8)
            return time.perf_counter() - started

        begun = [self._threads.submit(fill, first) for first in range(0, len(rows), _CROP_AT_ONCE)]
        return _CutInMemory(begun, pixels, pixels_BP, checks_B4, self._num_threads)

    @property
    def num_begun(self) -> int:
        return TASKS_AHEAD * _CROP_AT_ONCE * self._num_threads

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._memory.close()

    def _load(self, rows: NDArray[np.int64]) -> None:
        """Decodes `rows`, ascending: in the order of the sources, compressed containers are read from front to end."""
        locations = self._cache.locations(rows)
        data = [self._payloads.payload(row, location) for row, location in zip(rows.tolist(), locations, strict=True)]
        self._images.update(zip(rows.tolist(), self._threads.map(_decoded, data, locations), strict=True))


@dataclass(frozen=True)
class _CutInMemory:
    """Crops that threads cut: the futures of their seconds, and where the crops go."""

    begun: Sequence[Future[float]]
    pixels: Mapping[CropShape, NDArray[np.uint8]]
    pixels_BP: NDArray[np.uint8]
    checks_B4: NDArray[np.uint8]
    num_threads: int

    def result(self) -> Crops:
        seconds = sum(future.result() for future in self.begun) / self.num_threads
        return Crops(self.pixels, self.pixels_BP, self.checks_B4, {"decode": seconds})


def fit_in_memory(cache: Cache, rows: NDArray[np.int64], limit_bytes: int, small: SmallPictures | None = None) -> bool:
    """Returns whether all pictures of `rows` fit decoded into `limit_bytes`, from their sizes in the sample tables.

    The originals, or where `small` is given the stored pictures made from them.
    """
    total = 0
    for _, some in rows_by_part(rows, cache.part_rows):
        for size in cache.sample_rows("image", some, ["width", "height"]):
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
