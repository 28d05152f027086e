"""The crop and flip of one view of one image, as a pure function of (seed, view, digest) and the picture's size."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def crops_of(
    seed: int,
    views: Sequence[int],
    digests: Sequence[bytes],
    *,
    widths: Sequence[int],
    heights: Sequence[int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> list[Crop]:
    """Returns the crops of many pictures: to the last bit what `crop_of` returns for each, by the same operations.

    Args:
        seed: as in `crop_of`, for all.
        views: of every picture.
        digests: likewise.
        widths: likewise.
        heights: likewise.
        scale: as in `crop_of`, for all.
        ratio: likewise.
        flip: whether crops may be mirrored; where not, none is.
    """
    start = seed.to_bytes(8, "little", signed=True)
    of_view = {view: start + view.to_bytes(8, "little") for view in set(views)}
    identities = [of_view[view] + digest for view, digest in zip(views, digests, strict=True)]
    width, height = np.asarray(widths, np.int64), np.asarray(heights, np.int64)
    flips = (_blocks(identities, _FLIP_BLOCK)[:, 0] & np.uint64(1)).astype(bool) & flip
    boxes_N4 = np.empty((len(identities), 4))
    left = np.arange(len(identities))
    for attempt in range(_ATTEMPTS):
        blocks = _blocks([identities[place] for place in left.tolist()], attempt)
        shares, exponents = _units(blocks[:, 0]), _units(blocks[:, 1])
        areas = (width[left] * height[left]) * (scale[0] + (scale[1] - scale[0]) * shares)
        aspects = ratio[0] * _powers(ratio[1] / ratio[0], exponents)
        # Both round halves to even, as `round` does.
        box_width = np.rint(np.sqrt(areas * aspects)).astype(np.int64)
        box_height = np.rint(np.sqrt(areas / aspects)).astype(np.int64)
        fits = (box_width > 0) & (box_width <= width[left]) & (box_height > 0) & (box_height <= height[left])
        found, box_width, box_height, blocks = left[fits], box_width[fits], box_height[fits], blocks[fits]
        boxes_N4[found, 0] = _share_of(blocks[:, 2], width[found] - box_width + 1) / width[found]
        boxes_N4[found, 1] = _share_of(blocks[:, 3], height[found] - box_height + 1) / height[found]
        boxes_N4[found, 2] = box_width / width[found]
        boxes_N4[found, 3] = box_height / height[found]
        left = left[~fits]
        if not len(left):
            break
    lefts, tops, box_widths, box_heights = boxes_N4.T.tolist()
    crops = list(map(Crop, lefts, tops, box_widths, box_heights, flips.tolist()))
    for place in left.tolist():
        crops[place] = _central_crop(int(width[place]), int(height[place]), ratio, bool(flips[place]))
    return crops


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


def _blocks(identities: Sequence[bytes], number: int) -> NDArray[np.uint64]:
    """Returns what `_block` does for each of `identities`, shape (len(identities), 4)."""
    suffix, blake2b = bytes([number]), hashlib.blake2b
    data = [blake2b(identity + suffix, digest_size=32, person=b"view-crop").digest() for identity in identities]
    return np.frombuffer(b"".join(data), "<u8").reshape(-1, 4)


def _share_of(bits: NDArray[np.uint64], numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Returns bits · number >> 64, for numbers below 2**32, whose products have 96 bits."""
    factors, half = numbers.astype(np.uint64), np.uint64(32)
    low = (bits & np.uint64(2**32 - 1)) * factors
    return ((bits >> half) * factors + (low >> half)) >> half


def _units(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _powers(base: float, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns what `_power` does for each of `exponents`."""
    results = np.ones_like(exponents)
    for _ in range(_ROOTS):
        base = math.sqrt(base)
        exponents = exponents * 2.0
        is_set = exponents >= 1.0
        exponents = exponents - is_set
        results = np.where(is_set, results * base, results)
    return results


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
