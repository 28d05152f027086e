"""From one payload to everything that extract wants of it, decoded once. Runs in decode processes.

V: views; H, W: height and width of the teacher's input; C: the three colours.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from stages.decode import Limits, decode_image
from stages.pixel_rule import PixelRule
from stages.prepare import Prepared, over_resized_limit
from stages.preprocess import Preprocess, crop_pixels, prepare_pixels
from stages.view_check import check_of
from stages.views import Crop, ViewRule


@dataclass(frozen=True)
class Wanted:
    """What is wanted of one payload.

    Attributes:
        digest: of the sample; together with a rule it says which box a view shows.
        views: None stands for view 0, the teacher's own evaluation preprocessing.
        store: how to store the picture; None stores nothing.
        original_size: (width, height) of the upright original, when the payload is its stored copy.
    """

    digest: bytes
    views: tuple[ViewRule | None, ...]
    store: PixelRule | None = None
    original_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ReplayPlan:
    """One crop of every payload, decoded at full size, with its check where that is wanted. Its pixels are HWC.

    Attributes:
        preprocess: the values of the student.
        limits: what one payload may cost.
    """

    preprocess: Preprocess
    limits: Limits = field(default_factory=Limits)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.preprocess.size, 3)

    def prepare(self, payload: bytes, wanted: tuple[Crop, bool]) -> Prepared:
        """Returns the pixels of a crop, and its check if the second of `wanted` says so."""
        crop, with_check = wanted
        decoded = decode_image(payload, self.limits)
        if decoded.image is None:
            return Prepared(None, decoded.status, decoded.reason, decoded.width, decoded.height)
        pixels_HWC = crop_pixels(decoded.image, crop, self.preprocess)
        checks = check_of(decoded.image, crop) if with_check else b""
        return Prepared(pixels_HWC, "ok", decoded.reason, decoded.width, decoded.height, checks)


@dataclass(frozen=True)
class ViewsPlan:
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
        # Asked of every original, so that a sample has one status whatever was extracted of it first.
        if wanted.original_size is None and (too_long := over_resized_limit(decoded, self.preprocess, self.limits)):
            return Prepared(None, "img-too-many-pixels", too_long, decoded.width, decoded.height)
        width, height = wanted.original_size or (decoded.width, decoded.height)
        crops = [
            None if rule is None else rule.crop(wanted.digest, width=width, height=height) for rule in wanted.views
        ]
        pixels_VHWC = np.empty((len(crops), *self.shape[1:]), np.uint8)
        for place, crop in enumerate(crops):
            pixels_VHWC[place] = self._pixels(decoded.image, crop)
        checks = b"".join(check_of(decoded.image, crop) for crop in crops if crop is not None)
        jpeg = b"" if wanted.store is None else wanted.store.encode(decoded.image)
        return Prepared(pixels_VHWC, "ok", decoded.reason, decoded.width, decoded.height, checks, jpeg)

    def _pixels(self, image: Image.Image, crop: Crop | None) -> np.ndarray:
        return prepare_pixels(image, self.preprocess) if crop is None else crop_pixels(image, crop, self.preprocess)
