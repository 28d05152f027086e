"""The crop of a view: the same everywhere, and distributed as torchvision's random resized crop."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from stages.images.crops import Crop, crop_of, crops_of


def digest_number(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def box(crop: Crop, width: int, height: int) -> tuple[float, float, float, float]:
    return crop.left * width, crop.top * height, crop.width * width, crop.height * height


def test_known_crops_stay_what_they_are() -> None:
    digest = bytes(range(16))
    known = {
        (0, 1, 640, 480): (110, 103, 454, 358, False),
        (0, 2, 640, 480): (16, 22, 161, 171, True),
        (-5, 1, 333, 77): (108, 2, 62, 70, True),
    }
    for (seed, view, width, height), (left, top, box_width, box_height, flip) in known.items():
        crop = crop_of(seed, view, digest, width=width, height=height)
        assert crop == Crop(left / width, top / height, box_width / width, box_height / height, flip)


@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    view=st.integers(1, 10**6),
    digest=st.binary(min_size=16, max_size=16),
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
)
@settings(max_examples=200, deadline=None)
def test_a_crop_is_a_box_of_whole_pixels_inside_the_picture(
    seed: int, view: int, digest: bytes, width: int, height: int
) -> None:
    crop = crop_of(seed, view, digest, width=width, height=height)
    assert crop == crop_of(seed, view, digest, width=width, height=height)
    left, top, box_width, box_height = box(crop, width, height)
    for value in (left, top, box_width, box_height):
        assert value == pytest.approx(round(value), abs=1e-6)
    left, top, box_width, box_height = (round(value) for value in (left, top, box_width, box_height))
    assert box_width >= 1 and box_height >= 1 and left >= 0 and top >= 0
    assert left + box_width <= width and top + box_height <= height


@pytest.mark.parametrize("change", ["seed", "view", "digest"])
def test_seed_view_and_digest_each_change_the_crop(change: str) -> None:
    base = {"seed": 1, "view": 1, "digest": digest_number(0)}
    other = {**base, change: {"seed": 2, "view": 2, "digest": digest_number(1)}[change]}
    assert crop_of(**base, width=300, height=200) != crop_of(**other, width=300, height=200)


def test_areas_aspects_places_and_flips_are_distributed_as_torchvisions() -> None:
    width, height, count = 500, 400, 4000
    ours = [crop_of(7, 1, digest_number(number), width=width, height=height) for number in range(count)]
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    our_boxes = np.array([box(crop, width, height) for crop in ours])
    their_boxes = np.array([(left, top, w, h) for top, left, h, w in theirs], dtype=float)
    for measure in (
        lambda b: b[:, 2] * b[:, 3] / (width * height),
        lambda b: np.log(b[:, 2] / b[:, 3]),
        lambda b: (b[:, 0] + b[:, 2] / 2) / width,
        lambda b: (b[:, 1] + b[:, 3] / 2) / height,
    ):
        assert kolmogorov_distance(measure(our_boxes), measure(their_boxes)) < 1.95 / math.sqrt(count / 2)
    assert abs(np.mean([crop.flip for crop in ours]) - 0.5) < 0.04


def kolmogorov_distance(first: np.ndarray, second: np.ndarray) -> float:
    values = np.concatenate([first, second])
    of_first = np.searchsorted(np.sort(first), values, side="right") / len(first)
    of_second = np.searchsorted(np.sort(second), values, side="right") / len(second)
    return float(np.abs(of_first - of_second).max())


@pytest.mark.parametrize(("width", "height"), [(10_000, 3), (3, 10_000)])
def test_a_picture_too_long_for_any_crop_gives_its_central_box(width: int, height: int) -> None:
    left, top, box_width, box_height = box(crop_of(0, 1, bytes(16), width=width, height=height), width, height)
    assert (round(box_width), round(box_height)) == ((4, 3) if width > height else (3, 4))
    assert abs(left + box_width / 2 - width / 2) <= 1 and abs(top + box_height / 2 - height / 2) <= 1


def test_view_zero_has_no_crop() -> None:
    with pytest.raises(AssertionError):
        crop_of(0, 0, bytes(16), width=10, height=10)


def test_the_crops_of_many_pictures_are_those_of_each_to_the_last_bit() -> None:
    rng = np.random.default_rng(8)
    # Narrow ones, for which no drawn box fits, too.
    widths, heights = rng.integers(1, 60, 3000).tolist(), rng.integers(1, 4000, 3000).tolist()
    digests = [digest_number(number) for number in range(3000)]
    views = rng.integers(1, 2**40, 3000).tolist()
    for scale in ((0.08, 1.0), (0.9, 1.0)):
        each = [
            crop_of(-5, view, digest, width=width, height=height, scale=scale)
            for view, digest, width, height in zip(views, digests, widths, heights, strict=True)
        ]
        assert crops_of(-5, views, digests, widths=widths, heights=heights, scale=scale) == each
        assert crops_of(-5, views, digests, widths=heights, heights=widths, scale=scale) == [
            crop_of(-5, view, digest, width=height, height=width, scale=scale)
            for view, digest, width, height in zip(views, digests, widths, heights, strict=True)
        ]
    assert crops_of(0, [], [], widths=[], heights=[]) == []
    huge = crops_of(0, [1], [bytes(16)], widths=[2**31 - 1], heights=[2**20])
    assert huge == [crop_of(0, 1, bytes(16), width=2**31 - 1, height=2**20)]
