"""Our pixels against those of open_clip's own evaluation transform, which is the reference."""

import itertools

import numpy as np
import pytest
from open_clip.transform import image_transform
from torchvision.transforms import Compose, Normalize, ToTensor
from torchvision.transforms import functional as reference

from cache_schema.errors import RefusedError, UsageError
from stages.images.crops import Crop
from stages.images.preprocess import Preprocess, crop_pixels, normalise, prepare_pixels, resized_size
from tests.corpora.pictures import noise

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIZES = [(224, 224), (37, 51), (51, 37), (100, 100), (641, 480), (333, 1000), (1000, 31), (5, 4), (1, 1)]


def open_clip_steps(preprocess: Preprocess) -> list:
    transform = image_transform(
        preprocess.size if preprocess.size[0] != preprocess.size[1] else preprocess.size[0],
        is_train=False,
        mean=preprocess.mean,
        std=preprocess.std,
        interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode,
        fill_color=preprocess.fill_color,
    )
    return transform.transforms


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (40, 24)], ids=str)
def test_pixels_equal_those_of_open_clip(size: tuple[int, int], interpolation: str, resize_mode: str) -> None:
    preprocess = Preprocess(size, MEAN, STD, interpolation, resize_mode, fill_color=7)
    steps = open_clip_steps(preprocess)
    before_tensor = Compose([step for step in steps if type(step).__name__ not in ("MaybeToTensor", "Normalize")])
    for width, height in SIZES:
        if resize_mode == "longest" and max(width / height, height / width) > max(size):
            continue
        image = noise(width, height)
        expected = np.asarray(before_tensor(image))
        assert expected.shape == (*size, 3)
        assert np.array_equal(prepare_pixels(image, preprocess), expected), (width, height)


def test_normalised_values_equal_those_of_torchvision_bit_for_bit() -> None:
    preprocess = Preprocess((16, 256), MEAN, STD)
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None, :, None], (2, 16, 256, 3)).copy()
    steps = Compose([ToTensor(), Normalize(MEAN, STD)])
    expected = np.stack([steps(pixels).numpy() for pixels in ramp])
    result = normalise(ramp, preprocess)
    assert result.dtype == np.float32 and result.shape == (2, 3, 16, 256) and result.flags.c_contiguous
    assert np.array_equal(result, expected)


def test_a_crop_equals_cropping_and_resizing_with_torchvision() -> None:
    preprocess = Preprocess((32, 24), MEAN, STD, "bilinear")
    image = noise(301, 203)
    crop = Crop(left=17 / 301, top=30 / 203, width=120 / 301, height=99 / 203, flip=True)
    expected = reference.hflip(reference.resized_crop(image, 30, 17, 99, 120, [32, 24]))
    assert np.array_equal(crop_pixels(image, crop, preprocess), np.asarray(expected))


def test_every_crop_stays_inside_and_is_never_empty() -> None:
    preprocess = Preprocess((8, 8), MEAN, STD)
    for left, top, side in itertools.product((0.0, 0.5, 0.9999), (0.0, 0.999), (1e-6, 0.3, 1.0)):
        for width, height in ((1, 1), (3, 700), (64, 48)):
            assert crop_pixels(noise(width, height), Crop(left, top, side, side), preprocess).shape == (8, 8, 3)


def test_the_resized_size_is_known_without_resizing() -> None:
    shortest = Preprocess((224, 224), MEAN, STD)
    assert resized_size(1, 10_000_000, shortest) == (224, 2_240_000_000)
    assert resized_size(10_000_000, 1, Preprocess((224, 224), MEAN, STD, resize_mode="longest")) == (224, 1)


def test_values_survive_json_exactly() -> None:
    preprocess = Preprocess((336, 224), MEAN, STD, "bilinear", "longest", 255)
    assert Preprocess.from_json(preprocess.to_json()) == preprocess


def test_wrong_values_are_refused() -> None:
    good = Preprocess((8, 8), MEAN, STD).to_json()
    with pytest.raises(RefusedError, match="missing fields"):
        Preprocess.from_json({name: value for name, value in good.items() if name != "mean"})
    with pytest.raises(RefusedError, match="unknown fields"):
        Preprocess.from_json({**good, "sise": 3})
    with pytest.raises(UsageError, match="did you mean 'bicubic'"):
        Preprocess((8, 8), MEAN, STD, interpolation="bicubbic")
    with pytest.raises(UsageError, match="unknown resize mode 'stretch'"):
        Preprocess((8, 8), MEAN, STD, resize_mode="stretch")
    with pytest.raises(RefusedError, match="std above 0"):
        Preprocess((8, 8), MEAN, (1.0, 0.0, 1.0))
    with pytest.raises(RefusedError, match="height, width"):
        Preprocess((0, 8), MEAN, STD)


def test_fields_that_came_later_are_written_only_where_they_say_something() -> None:
    plain, later = Preprocess((8, 8), MEAN, STD), Preprocess((8, 8), MEAN, STD, resize_to=(9, 9), crop_rounding="down")
    assert not {"resize_to", "crop_rounding"} & set(plain.to_json())
    assert later.to_json() == {**plain.to_json(), "resize_to": [9, 9], "crop_rounding": "down"}
    assert Preprocess.from_json(plain.to_json()) == plain
    assert Preprocess.from_json(later.to_json()) == later


def test_the_centre_is_cropped_after_a_resize_to_another_size_half_a_pixel_up_or_down() -> None:
    image = noise(11, 9)
    for rounding, left in (("nearest", 2), ("down", 1)):
        preprocess = Preprocess((8, 8), MEAN, STD, "bilinear", "squash", resize_to=(8, 11), crop_rounding=rounding)
        expected = np.asarray(image.resize((11, 8), 2))[:, left : left + 8]
        assert np.array_equal(prepare_pixels(image, preprocess), expected)
