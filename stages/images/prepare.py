"""The whole way of one payload to the pixels a model sees: decode, crop or resize. Runs in decode processes."""

from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np

from stages.images.crops import Crop
from stages.images.decode import TOO_MANY_PIXELS, Decoded, Limits, decode_image
from stages.images.preprocess import CropShape, Preprocess, crop_pixels, prepare_pixels, resized_size
from stages.images.stored import PixelRule
from stages.images.views import ViewRule, check_of

Request = tuple[bytes, Any]
"""A payload and what is wanted of it, in the words of the preparation that prepares it."""


AFTER_RESIZE = "after resize"
"""The end of the reason why one model cannot see a picture, which is nothing against the picture."""


@dataclass(frozen=True)
class Prepared:
    """The result of one payload.

    Attributes:
        pixels: uint8, of the preparation's shape or shorter along its first axis; None where `status` is not `ok`.
        status: `ok`, or why there are no pixels.
        reason: in fixed words.
        width: the width of the whole upright picture, 0 where unknown.
        height: likewise.
        checks: `VIEW_CHECK_BYTES` for every crop that was to be checked, see `stages.images.view_check`.
        jpeg: the picture as it is to be stored, where that was wanted.
        too_long: the reason why an ok picture has no view 0: the resize before the crop would make too many pixels of
            it. Where view 0 was wanted, its pixels are black.
    """

    pixels: np.ndarray | None
    status: str = "ok"
    reason: str = ""
    width: int = 0
    height: int = 0
    checks: bytes = b""
    jpeg: bytes = b""
    too_long: str = ""


class Preparation(Protocol):
    """The work of decode processes on every payload. Pickled into them, so its class must be importable there."""

    @property
    def limits(self) -> Limits:
        """The limits of one payload."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the largest pixels that `prepare` returns: what a place in the memory shared with a process holds."""

    def prepare(self, payload: bytes, wanted: Any, /) -> Prepared:
        """Returns what is `wanted` of `payload`; never raises for bad bytes."""


@dataclass(frozen=True)
class CropPreparation:
    """One crop of every payload, or the model's own evaluation preprocessing of it. Its pixels are HWC.

    Attributes:
        preprocess: the values of the model that will see the pixels.
        limits: what one payload may cost.
    """

    preprocess: Preprocess
    limits: Limits = field(default_factory=Limits)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.preprocess.size, 3)

    def prepare(self, payload: bytes, crop: Crop | None) -> Prepared:
        """Returns the pixels of the crop, or of the model's own evaluation preprocessing where `crop` is None."""
        decoded = decode_image(payload, self.limits)
        if decoded.image is None:
            return Prepared(None, decoded.status, decoded.reason, decoded.width, decoded.height)
        if crop is not None:
            pixels = crop_pixels(decoded.image, crop, self.preprocess)
        else:
            if too_long := over_resized_limit(decoded, self.preprocess, self.limits):
                return Prepared(None, TOO_MANY_PIXELS, too_long, decoded.width, decoded.height)
            pixels = prepare_pixels(decoded.image, self.preprocess)
        return Prepared(pixels, "ok", decoded.reason, decoded.width, decoded.height)


def over_resized_limit(decoded: Decoded, preprocess: Preprocess, limits: Limits) -> str:
    """Returns the reason why a picture is too long for the resize of `preprocess`, empty when it is not."""
    width, height = resized_size(decoded.width, decoded.height, preprocess)
    too_long = width * height > limits.max_resized_pixels
    return f"over {limits.max_resized_pixels} {AFTER_RESIZE}" if too_long else ""


@dataclass(frozen=True)
class Wanted:
    """The outputs that are wanted of one payload.

    Attributes:
        digest: the digest of the sample; together with a rule it says which box a view shows.
        views: None stands for view 0, the teacher's own evaluation preprocessing.
        store: how to store the picture; None stores nothing.
        original_size: (width, height) of the upright original, when the payload is its stored copy.
    """

    digest: bytes
    views: tuple[ViewRule | None, ...]
    store: PixelRule | None = None
    original_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class TrainingPreparation:
    """One crop of every payload in every shape, with its check where that is wanted.

    Its pixels are those of all shapes behind each other, in one dimension; `cut` takes them apart.

    Attributes:
        shapes: that students take.
        reduce_for: (height, width) of the largest shape that any student takes, for which a JPEG may be decoded at a
            fraction of its size. Faster, and the pixels differ a little. None decodes it at its full size, as a check
            needs it.
        limits: what one payload may cost.
    """

    shapes: tuple[CropShape, ...]
    reduce_for: tuple[int, int] | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(3 * prod(shape.size) for shape in self.shapes),)

    def prepare(self, payload: bytes, wanted: tuple[Crop, bool]) -> Prepared:
        """Returns the pixels of a crop, and its check if the second of `wanted` says so."""
        crop, with_check = wanted
        assert self.reduce_for is None or not with_check, "a check needs the picture at its full size"
        reduce_for = None if self.reduce_for is None else (crop, self.reduce_for)
        decoded = decode_image(payload, self.limits, reduce_for=reduce_for)
        if decoded.image is None:
            return Prepared(None, decoded.status, decoded.reason, decoded.width, decoded.height)
        each = [crop_pixels(decoded.image, crop, shape).ravel() for shape in self.shapes]
        pixels = each[0] if len(each) == 1 else np.concatenate(each)
        checks = check_of(decoded.image, crop) if with_check else b""
        return Prepared(pixels, "ok", decoded.reason, decoded.width, decoded.height, checks)

    def cut(self, pixels_BP: np.ndarray) -> dict[CropShape, np.ndarray]:
        """Returns the pixels BHWC of every shape: views of `pixels_BP`, which has those of all shapes of a picture."""
        found = {}
        start = 0
        for shape in self.shapes:
            end = start + 3 * prod(shape.size)
            found[shape] = pixels_BP[:, start:end].reshape(-1, *shape.size, 3)
            start = end
        return found


@dataclass(frozen=True)
class ViewsPreparation:
    """All wanted views of every payload; their pixels are VHWC.

    Attributes:
        preprocess: the values of the teacher.
        num_views: the most views that one payload is asked for.
        limits: what one payload may cost.
    """

    preprocess: Preprocess
    num_views: int
    limits: Limits = field(default_factory=Limits)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_views, *self.preprocess.size, 3)

    def prepare(self, payload: bytes, wanted: Wanted) -> Prepared:
        """Returns the pixels of the wanted views, and the checks of those that are crops, in the same order."""
        decoded = decode_image(payload, self.limits)
        if decoded.image is None:
            return Prepared(None, decoded.status, decoded.reason, decoded.width, decoded.height)
        # The fault of this model's input, not of the picture: crops of it, and other models, are not concerned.
        too_long = over_resized_limit(decoded, self.preprocess, self.limits) if None in wanted.views else ""
        width, height = wanted.original_size or (decoded.width, decoded.height)
        crops = [
            None if rule is None else rule.crop(wanted.digest, width=width, height=height) for rule in wanted.views
        ]
        pixels_VHWC = np.zeros((len(crops), *self.shape[1:]), np.uint8)
        for place, crop in enumerate(crops):
            if crop is not None:
                pixels_VHWC[place] = crop_pixels(decoded.image, crop, self.preprocess)
            elif not too_long:
                pixels_VHWC[place] = prepare_pixels(decoded.image, self.preprocess)
        checks = b"".join(check_of(decoded.image, crop) for crop in crops if crop is not None)
        jpeg = b"" if wanted.store is None else wanted.store.encode(decoded.image)
        return Prepared(pixels_VHWC, "ok", decoded.reason, decoded.width, decoded.height, checks, jpeg, too_long)
