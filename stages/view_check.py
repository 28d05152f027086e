"""Four bytes that tell whether a student crops the picture that the teacher saw, in the box that the teacher saw.

A library that decodes or resizes otherwise than it did when the teacher looked gives other bytes.
"""

import hashlib

from PIL import Image

from cache_schema.view_checks import VIEW_CHECK_BYTES
from stages.preprocess import Preprocess, crop_pixels
from stages.views import Crop

_SMALL = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")


def check_of(image: Image.Image, crop: Crop) -> bytes:
    """Returns the check of a crop of an upright RGB picture, 4 bytes.

    The box is cut from the picture, resized to 32 × 32 (bicubic) and mirrored if the crop is; the check is the
    beginning of the BLAKE2b of its RGB bytes, row by row.
    """
    return hashlib.blake2b(crop_pixels(image, crop, _SMALL).tobytes()).digest()[:VIEW_CHECK_BYTES]
