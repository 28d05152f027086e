"""The crop and flip of one view of one image, as a pure function of (seed, view, digest) and the picture's size."""

import hashlib
import math
from dataclasses import dataclass

_ATTEMPTS = 10
_FLIP_BLOCK = 255
_ROOTS = 32


@dataclass(frozen=True)
class Crop:
    """A box inside an upright picture, in fractions of its width and height, and whether to mirror it left to right."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False


def crop_of(
    seed: int,
    view: int,
    digest: bytes,
    *,
    width: int,
    height: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Crop:
    """Returns the crop of view `view` (1 or more) of a picture: a random resized crop, drawn from BLAKE2b bytes.

    The same on every platform and in every version: integers, and floats through correctly rounded operations only
    (no `exp` or `log`, whose last bit differs between C libraries).

    Source: the rule is torchvision's `RandomResizedCrop.get_params`: an area uniform in `scale`, a log-uniform
    aspect in `ratio`, ten attempts, then the largest central box with an allowed aspect. The box has whole pixels.

    Args:
        seed: a 64-bit signed integer, the view seed of the run.
        view: the number of the view; 0 is the teacher's own preprocessing and has no crop.
        digest: the 16 bytes of the sample's payload digest.
        width: pixels of the upright picture, as decoding reports them.
        height: likewise.
        scale: least and greatest share of the picture's area.
        ratio: least and greatest aspect (width over height).
    """
    assert view >= 1, "view 0 is the teacher's own preprocessing"
    assert width >= 1 and height >= 1
    identity = seed.to_bytes(8, "little", signed=True) + view.to_bytes(8, "little") + digest
    flip = bool(_block(identity, _FLIP_BLOCK)[0] & 1)
    for attempt in range(_ATTEMPTS):
        block = _block(identity, attempt)
        area = width * height * (scale[0] + (scale[1] - scale[0]) * _unit(block[0]))
        aspect = ratio[0] * _power(ratio[1] / ratio[0], _unit(block[1]))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = block[2] * (width - box_width + 1) >> 64
            top = block[3] * (height - box_height + 1) >> 64
            return Crop(left / width, top / height, box_width / width, box_height / height, flip)
    return _central_crop(width, height, ratio, flip)


def _central_crop(width: int, height: int, ratio: tuple[float, float], flip: bool) -> Crop:
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        box_width = max(1, min(width, round(height * ratio[1])))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return Crop(left / width, top / height, box_width / width, box_height / height, flip)


def _block(identity: bytes, number: int) -> tuple[int, int, int, int]:
    """Returns four 64-bit integers that depend on every bit of `identity` and on `number`."""
    data = hashlib.blake2b(identity + bytes([number]), digest_size=32, person=b"view-crop").digest()
    return (
        int.from_bytes(data[0:8], "little"),
        int.from_bytes(data[8:16], "little"),
        int.from_bytes(data[16:24], "little"),
        int.from_bytes(data[24:32], "little"),
    )


def _unit(bits: int) -> float:
    return (bits >> 11) * 2.0**-53


def _power(base: float, exponent: float) -> float:
    """Returns base ** exponent for an exponent in [0, 1), by square roots, which IEEE 754 rounds correctly."""
    result = 1.0
    for _ in range(_ROOTS):
        base = math.sqrt(base)
        exponent *= 2.0
        if exponent >= 1.0:
            exponent -= 1.0
            result *= base
    return result
