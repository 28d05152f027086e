"""A library that sets something for the whole process changes no feature, or the part is refused in clear words."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import GifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError
from stages.teachers.held import HeldTeacher, load_held, read_settings, set_settings
from stages.teachers.python_factory import PythonTeacher
from tests.corpora.extracts import digests_of, extract, extract_config
from tests.corpora.flipping_teacher import FLIPS, LAYER, FlippingTeacher
from tests.corpora.small_corpus import write_sources


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    before = read_settings()
    yield
    set_settings(before)
    assert read_settings() == before


def held(flip: Callable[[], Any], at: Callable[[int], bool]) -> HeldTeacher:
    return HeldTeacher(PythonTeacher(FlippingTeacher(flip, at), "python:tests:flipping"))


TEXTS = ["one", "three", "a sentence"]


@pytest.mark.parametrize("name", FLIPS)
def test_what_was_set_is_read_and_set_back(name: str) -> None:
    before = read_settings()
    FLIPS[name]()
    assert read_settings() != before
    set_settings(before)
    assert read_settings() == before


@pytest.mark.parametrize("name", FLIPS)
def test_a_batch_under_a_setting_that_changed_is_encoded_once_more_under_the_right_one(name: str) -> None:
    before = read_settings()
    teacher = held(FLIPS[name], lambda batch: batch == 3)
    with torch.inference_mode():
        right = LAYER(torch.tensor([[len(text) / (1 + i) for i in range(8)] for text in TEXTS])).numpy()
    for _ in range(5):
        np.testing.assert_array_equal(teacher.encode_texts(TEXTS), right)
        assert read_settings() == before


@pytest.mark.parametrize("name", FLIPS)
def test_a_setting_that_another_library_changes_between_batches_is_set_back(name: str) -> None:
    teacher = held(lambda: None, lambda _: False)
    before = teacher.encode_texts(TEXTS)
    FLIPS[name]()
    np.testing.assert_array_equal(teacher.encode_texts(TEXTS), before)


def test_a_setting_that_changes_from_some_batch_on_is_refused_with_both_values() -> None:
    teacher = held(FLIPS["default type"], lambda batch: batch >= 3)
    teacher.encode_texts(TEXTS)
    teacher.encode_texts(TEXTS)
    with pytest.raises(MismatchError, match=r"torch's default type became torch\.float64 .* it was torch\.float32"):
        teacher.encode_texts(TEXTS)


def test_a_teacher_that_sets_the_same_at_every_batch_goes_on() -> None:
    teacher = held(FLIPS["matmul precision"], lambda _: True)
    for _ in range(4):
        teacher.encode_texts(TEXTS)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("name", FLIPS)
def test_what_is_set_at_load_is_set_for_its_teacher_alone(name: str) -> None:
    before = read_settings()

    def load() -> PythonTeacher:
        FLIPS[name]()
        return PythonTeacher(FlippingTeacher(), "python:tests:flipping")

    teacher = load_held(load)
    assert read_settings() == before
    features = teacher.encode_texts(TEXTS)
    assert read_settings() == before
    np.testing.assert_array_equal(features, load().encode_texts(TEXTS))


PILLOW = [
    (ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    (Image, "MAX_IMAGE_PIXELS", 1),
    (Image, "MAX_IMAGE_PIXELS", None),
    (PngImagePlugin, "MAX_TEXT_CHUNK", 1),
    (GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_ALWAYS),
    (TiffImagePlugin, "READ_LIBTIFF", True),
]


@pytest.mark.parametrize("decode_workers", [0, 1])
@pytest.mark.parametrize(("module", "name", "value"), PILLOW)
def test_pillow_judges_pictures_by_its_own_limits_whatever_a_library_sets(
    module: Any, name: str, value: object, decode_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, _ = write_sources(tmp_path, num_images=20, num_texts=1)
    cut = (pictures / "0001.png").read_bytes()
    (pictures / "0002.png").write_bytes(cut[: len(cut) - 100])
    reference = extract_config(tmp_path / "reference", pictures)
    extract(reference)
    monkeypatch.setattr(module, name, value)
    extract(extract_config(tmp_path / "cache", pictures, decode_workers=decode_workers))
    assert digests_of(tmp_path / "cache") == digests_of(reference.cache)
    assert Cache.open(tmp_path / "cache").array("image").num_bad == 1
