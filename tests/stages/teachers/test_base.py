"""What every teacher shares: the recipes of its arrays, and whether its files are those that it was loaded from."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import EnvironmentProblem
from stages.teachers import load_teacher
from stages.teachers.base import Teacher, files_unchanged, recipes_of, sha256_of_path, states_of
from tests.corpora.stub_teacher import stub


class Silent(Teacher):
    """A teacher with no more than it must have."""

    def encode_images(self, pixels_BCHW: np.ndarray) -> np.ndarray:
        return pixels_BCHW.reshape(len(pixels_BCHW), -1)

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 1), np.float32)


def test_a_recipe_says_how_its_modality_was_made_and_both_share_the_rest() -> None:
    teacher = load_teacher(stub(dim=12, logit_scale=50.0, context_length=9))
    image, text = (recipes_of(teacher, "bfloat16")[modality] for modality in ("image", "text"))
    assert (image.modality, text.modality) == ("image", "text")
    assert image.preprocess == {
        "size": [32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    assert {"name": "words", "cleaning": "none", "context_length": 9}.items() <= text.preprocess.items()
    for recipe in (image, text):
        assert (recipe.dim, recipe.logit_scale, recipe.logit_bias) == (12, 50.0, None)
        assert (recipe.teacher, recipe.precision) == (teacher.identity, "bfloat16")
        assert (recipe.specification, recipe.files) == (teacher.specification, teacher.files)


def test_precision_and_identity_are_in_the_fingerprint_and_paths_are_not() -> None:
    teacher = load_teacher(stub())

    def fingerprints(precision: str = "float32") -> list[str]:
        return [recipe.fingerprint for recipe in recipes_of(teacher, precision).values()]

    before = fingerprints()
    assert not set(before) & set(fingerprints("float16"))
    teacher.specification, teacher.files = "python:elsewhere:make", {"/elsewhere": {"size_bytes": 1, "mtime_ns": 2}}
    assert fingerprints() == before
    teacher.identity = {**teacher.identity, "version": "2"}
    assert not set(before) & set(fingerprints())


def test_a_teacher_that_knows_nothing_of_tokens_says_so() -> None:
    assert Silent().count_tokens(["a", ""]) is None and Silent().token_ids([]) is None
    assert Silent.known_precisions == ("float32", "bfloat16", "float16")


def test_a_teacher_without_an_encoder_cannot_be_made() -> None:
    class Deaf(Teacher):
        def encode_images(self, pixels_BCHW: np.ndarray) -> np.ndarray:
            return pixels_BCHW

    with pytest.raises(TypeError, match="encode_texts"):
        Deaf()  # type: ignore[abstract]


def test_states_are_size_and_time_by_absolute_path_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("b ü", b"12345"), ("a", b"")):
        Path(name).write_bytes(content)
        os.utime(name, ns=(1, 1_700_000_000_123_456_789))
    states = states_of([Path("b ü"), Path("a")])
    assert list(states) == [str(tmp_path / "a"), str(tmp_path / "b ü")]
    assert [state["size_bytes"] for state in states.values()] == [0, 5]
    assert [state["mtime_ns"] for state in states.values()] == [os.stat(name).st_mtime_ns for name in ("a", "b ü")]
    assert states_of([]) == {}


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_the_state_of_what_is_no_file_is_an_environment_problem(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(EnvironmentProblem) as problem:
        states_of([tmp_path / name])
    assert str(problem.value) == f"cannot read {tmp_path / name}: it is no file: check the path and permissions"


def test_files_are_unchanged_until_one_has_another_size_or_time_or_is_gone(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"abc")
    other.write_bytes(b"abc")
    states = states_of([one, other])
    assert files_unchanged(states) and files_unchanged({})
    status = os.stat(other)
    other.write_bytes(b"abcd")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not files_unchanged(states)
    other.write_bytes(b"abc")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns + 10_000))
    assert not files_unchanged(states)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files_unchanged(states)
    other.unlink()
    assert not files_unchanged(states)


def test_the_sha256_of_a_file_is_that_of_hashlib(tmp_path: Path) -> None:
    for content in (b"", b"x" * 300_000):
        (tmp_path / "file").write_bytes(content)
        assert sha256_of_path(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_file_that_cannot_be_hashed_is_an_environment_problem_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"cannot read .*gone: it is no file: check the path$"):
        sha256_of_path(tmp_path / "gone")
    with pytest.raises(EnvironmentProblem, match=r"cannot read .*: it is no file: check the path$"):
        sha256_of_path(tmp_path)
