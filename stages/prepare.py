"""The whole way of one payload to the pixels a model sees: decode, crop or resize. Runs in decode processes."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from stages.decode import Decoded, Limits, decode_image
from stages.preprocess import Preprocess, crop_pixels, prepare_pixels, resized_size
from stages.views import Crop

Job = tuple[bytes, Any]
"""A payload and what is wanted of it, in the words of the plan that prepares it."""


@dataclass(frozen=True)
class Prepared:
    """What became of one payload.

    Attributes:
        pixels: uint8, of the plan's shape or shorter along its first axis; None where `status` is not `ok`.
        status: `ok`, or why there are no pixels.
        reason: in fixed words.
        width: of the whole upright picture, 0 where unknown.
        height: likewise.
        checks: `VIEW_CHECK_BYTES` for every crop that was to be checked, see `stages.view_check`.
        jpeg: the picture as it is to be stored, where that was wanted.
    """

    pixels: np.ndarray | None
    status: str = "ok"
    reason: str = ""
    width: int = 0
    height: int = 0
    checks: bytes = b""
    jpeg: bytes = b""


class Plan(Protocol):
    """What decode processes do to every payload. Pickled into them, so its class must be importable there."""

    @property
    def limits(self) -> Limits:
        """What one payload may cost."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the largest pixels that `prepare` returns: what a place in the memory shared with a process holds."""

    def prepare(self, payload: bytes, wanted: Any, /) -> Prepared:
        """Returns what is `wanted` of `payload`; never raises for bad bytes."""


@dataclass(frozen=True)
class PreparePlan:
    """One crop of every payload, or the model's own evaluation preprocessing of it. Its pixels are HWC.

    Attributes:
        preprocess: the values of the model that will see the pixels.
        limits: what one payload may cost.
        reduce_jpeg: decode a JPEG at a fraction of its size where its crop allows it. Faster, and the pixels differ
            a little, so it is for training crops; a payload without a crop is never reduced.
    """

    preprocess: Preprocess
    limits: Limits = field(default_factory=Limits)
    reduce_jpeg: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.preprocess.size, 3)

    def prepare(self, payload: bytes, crop: Crop | None) -> Prepared:
        """Returns the pixels of the crop, or of the model's own evaluation preprocessing where `crop` is None."""
        reduce_for = (crop, self.preprocess.size) if self.reduce_jpeg and crop is not None else None
        decoded = decode_image(payload, self.limits, reduce_for=reduce_for)
        if decoded.image is None:
            return Prepared(None, decoded.status, decoded.reason, decoded.width, decoded.height)
        if crop is not None:
            pixels = crop_pixels(decoded.image, crop, self.preprocess)
        else:
            if too_long := over_resized_limit(decoded, self.preprocess, self.limits):
                return Prepared(None, "img-too-many-pixels", too_long, decoded.width, decoded.height)
            pixels = prepare_pixels(decoded.image, self.preprocess)
        return Prepared(pixels, "ok", decoded.reason, decoded.width, decoded.height)


def over_resized_limit(decoded: Decoded, preprocess: Preprocess, limits: Limits) -> str:
    """Returns the reason why a picture is too long for the resize of `preprocess`, empty when it is not."""
    width, height = resized_size(decoded.width, decoded.height, preprocess)
    too_long = width * height > limits.max_resized_pixels
    return f"over {limits.max_resized_pixels} after resize" if too_long else ""
