"""Every kind of teacher keeps the promises of `Teacher`; a new kind fails here until it has a sample."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import PipelineError, UsageError
from cache_schema.json_file import canonical_json, parse_json
from stages.teachers import TEACHERS, Teacher, load_teacher, load_text_tower, recipes_of
from tests.corpora.stub_teacher import stub
from tests.corpora.tiny_hf import make_tiny_hf
from tests.corpora.tiny_open_clip import make_tiny_open_clip

SAMPLES: dict[str, Callable[[Path], str]] = {
    "open_clip": lambda folder: f"open_clip:local-dir:{make_tiny_open_clip(folder / 'tiny')}",
    "hf": lambda folder: f"hf:{make_tiny_hf(folder / 'tiny')}",
    "python": lambda folder: stub(dim=8),
}
"""Kind -> function(folder) that gives the specification of a tiny teacher, its files in `folder`."""

TEXTS = ["a photo of a cat", "two dogs", "snow on a hill", "a red bus, late at night"]


def test_every_kind_of_teacher_has_a_sample() -> None:
    assert set(SAMPLES) == set(TEACHERS)


@pytest.fixture(scope="module", params=sorted(TEACHERS))
def specification(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return SAMPLES[request.param](tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def teacher(specification: str) -> Teacher:
    return load_teacher(specification)


def pixels_for(teacher: Teacher, num_rows: int, seed: int = 0) -> np.ndarray:
    shape = (num_rows, 3, *teacher.preprocess.size)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_features_are_finite_float32_rows_of_the_promised_width(teacher: Teacher) -> None:
    for features in (teacher.encode_images(pixels_for(teacher, 4)), teacher.encode_texts(TEXTS)):
        assert (features.shape, features.dtype) == ((4, teacher.dim), np.float32)
        assert np.isfinite(features).all()
        assert np.linalg.matrix_rank(features) == 4


def test_a_teacher_loaded_again_from_its_own_specification_is_the_same_bit_for_bit(teacher: Teacher) -> None:
    again = load_teacher(teacher.specification)
    assert (again.identity, again.files, again.tokenizer) == (teacher.identity, teacher.files, teacher.tokenizer)
    assert (again.preprocess, again.logit_scale) == (teacher.preprocess, teacher.logit_scale)
    pixels = pixels_for(teacher, 4)
    assert np.array_equal(again.encode_images(pixels), teacher.encode_images(pixels))
    assert np.array_equal(again.encode_texts(TEXTS), teacher.encode_texts(TEXTS))


def test_a_text_tower_is_the_same_teacher_for_texts(teacher: Teacher, specification: str) -> None:
    tower = load_text_tower(specification)
    assert (tower.identity, tower.specification) == (teacher.identity, teacher.specification)
    assert np.array_equal(tower.encode_texts(TEXTS), teacher.encode_texts(TEXTS))


def test_identity_is_json_and_holds_no_path(teacher: Teacher) -> None:
    written = canonical_json(teacher.identity)
    assert parse_json(written, "identity") == teacher.identity
    assert not any(str(Path(path).parent) in written.decode() for path in teacher.files)


def test_files_are_absolute_and_carry_their_size_and_time(teacher: Teacher) -> None:
    assert teacher.files
    for name, state in teacher.files.items():
        assert Path(name).is_absolute()
        found = Path(name).stat()
        assert state == {"size_bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def test_recipes_of_both_modalities_are_stable_and_differ(teacher: Teacher) -> None:
    recipes = recipes_of(teacher, "float32")
    assert recipes["image"].fingerprint == recipes_of(teacher, "float32")["image"].fingerprint
    assert recipes["image"].fingerprint != recipes["text"].fingerprint
    assert recipes["text"].fingerprint != recipes_of(teacher, "bfloat16")["text"].fingerprint
    assert (recipes["text"].dim, recipes["text"].logit_scale) == (teacher.dim, teacher.logit_scale)


def test_token_counts_tell_which_sentences_are_cut(teacher: Teacher) -> None:
    counts = teacher.count_tokens(["one", "one " * 500])
    if counts is not None:
        assert teacher.context_length is not None
        assert counts[0] <= teacher.context_length < counts[1]


def test_the_feature_of_a_row_does_not_depend_on_its_neighbours(teacher: Teacher) -> None:
    pixels, others = pixels_for(teacher, 8), pixels_for(teacher, 8, seed=1)
    texts = [*TEXTS, "a", "b", "c", "d"]
    for row in (0, 3, 7):
        mixed_pixels, mixed_texts = others.copy(), ["another sentence, much longer than the rest of them"] * 8
        mixed_pixels[row], mixed_texts[row] = pixels[row], texts[row]
        assert np.array_equal(teacher.encode_images(mixed_pixels)[row], teacher.encode_images(pixels)[row])
        assert np.array_equal(teacher.encode_texts(mixed_texts)[row], teacher.encode_texts(texts)[row])


def test_a_padded_batch_gives_the_features_of_a_full_one(teacher: Teacher) -> None:
    pixels, texts = pixels_for(teacher, 8), [*TEXTS, "a", "b", "c", "d"]
    padded_pixels = np.concatenate([pixels[5:6], np.zeros_like(pixels[:7])])
    padded_texts = [texts[5], *[""] * 7]
    for full, padded in (
        (teacher.encode_images(pixels)[5], teacher.encode_images(padded_pixels)[0]),
        (teacher.encode_texts(texts)[5], teacher.encode_texts(padded_texts)[0]),
    ):
        assert np.array_equal(full, padded)


def test_another_batch_size_changes_nothing_but_the_last_bits(teacher: Teacher) -> None:
    pixels = pixels_for(teacher, 8)
    alone = np.concatenate([teacher.encode_images(pixels[row : row + 1]) for row in range(8)])
    np.testing.assert_allclose(alone, teacher.encode_images(pixels), rtol=1e-4, atol=1e-5)
    alone = np.concatenate([teacher.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, teacher.encode_texts(TEXTS), rtol=1e-4, atol=1e-5)


def test_a_device_that_is_not_there_is_never_replaced_by_another(specification: str) -> None:
    with pytest.raises(PipelineError, match="cuda:99"):
        load_teacher(specification, device="cuda:99")


def test_an_unknown_precision_is_refused_with_the_known_ones(specification: str) -> None:
    with pytest.raises(UsageError, match=r"unknown precision 'float64'.*float32, bfloat16, float16"):
        load_teacher(specification, precision="float64")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ViT-B-32/openai", "does not say its kind: write open_clip:…, hf:…, python:…"),
        ("openclip:ViT-B-32/openai", r"unknown kind of teacher 'openclip' \(did you mean 'open_clip'\?\)"),
        ("", "does not say its kind"),
    ],
)
def test_a_specification_without_a_known_kind_is_refused(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_teacher(given)
