"""The whole way of one payload to the pixels a model sees: decode, crop or resize. Runs in decode processes."""

from dataclasses import dataclass, field

import numpy as np

from stages.decode import Limits, decode_image
from stages.preprocess import Preprocess, crop_pixels, prepare_pixels, resized_size
from stages.views import Crop

Job = tuple[bytes, Crop | None]
"""A payload and the crop wanted of it; None for the model's own evaluation preprocessing."""


@dataclass(frozen=True)
class Prepared:
    """Pixels of one payload (uint8, HWC, the plan's size), or None with the status and reason why there are none.

    `width` and `height` are those of the whole upright picture, 0 where unknown.
    """

    pixels: np.ndarray | None
    status: str = "ok"
    reason: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class PreparePlan:
    """What is done to every payload.

    Attributes:
        preprocess: the values of the model that will see the pixels.
        limits: what one payload may cost.
        reduce_jpeg: decode a JPEG at a fraction of its size where its crop allows it. Faster, and the pixels differ
            a little, so it is for training crops; a payload without a crop is never reduced.
    """

    preprocess: Preprocess
    limits: Limits = field(default_factory=Limits)
    reduce_jpeg: bool = False

    def prepare(self, payload: bytes, crop: Crop | None) -> Prepared:
        """Returns the pixels of the crop, or of the model's own evaluation preprocessing where `crop` is None."""
        reduce_for = (crop, self.preprocess.size) if self.reduce_jpeg and crop is not None else None
        decoded = decode_image(payload, self.limits, reduce_for=reduce_for)
        if decoded.image is None:
            return Prepared(None, decoded.status, decoded.reason, decoded.width, decoded.height)
        if crop is not None:
            pixels = crop_pixels(decoded.image, crop, self.preprocess)
        else:
            width, height = resized_size(*decoded.image.size, self.preprocess)
            if width * height > self.limits.max_resized_pixels:
                reason = f"over {self.limits.max_resized_pixels} after resize"
                return Prepared(None, "img-too-many-pixels", reason, decoded.width, decoded.height)
            pixels = prepare_pixels(decoded.image, self.preprocess)
        return Prepared(pixels, "ok", decoded.reason, decoded.width, decoded.height)
