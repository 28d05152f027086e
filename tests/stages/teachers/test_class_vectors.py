"""A class vector is the unit mean of unit features, whatever the size of the batches, and never a broken one."""

from typing import Any

import numpy as np
import pytest

from cache_schema.errors import RefusedError
from stages.teachers import Teacher, load_teacher
from stages.teachers.class_vectors import class_vectors, count_cut_prompts
from tests.corpora.stub_teacher import make, stub

PROMPTS = [["a cat", "the cat", "ein Kätzchen 🐈"], ["a dog"], [f"wolf {number}" for number in range(7)]]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(stub())


def by_hand(prompts_of_class: list[list[str]]) -> np.ndarray:
    rows = []
    for prompts in prompts_of_class:
        features = make(dim=16).encode_texts(prompts).astype(np.float64)
        mean = (features / np.linalg.norm(features, axis=1, keepdims=True)).mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_classes_may_have_different_numbers_of_prompts_and_any_batches(teacher: Teacher, batch_size: int) -> None:
    found = class_vectors(teacher, PROMPTS, batch_size=batch_size)
    assert found.dtype == np.float32 and found.shape == (3, 16)
    np.testing.assert_allclose(found, by_hand(PROMPTS), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_no_forward_pass_is_larger_than_asked_and_no_prompt_is_encoded_twice(tmp_path: Any) -> None:
    calls = tmp_path / "calls"
    class_vectors(load_teacher(stub(calls=calls)), PROMPTS, batch_size=3)
    sizes = [int(line.split()[1]) for line in calls.read_text().splitlines()]
    assert sizes == [3, 1, 3, 3, 1]


@pytest.mark.parametrize("spoilt", ["nan_text", "zero_text"])
def test_a_prompt_without_a_usable_feature_is_refused_by_the_name_of_its_class(spoilt: str) -> None:
    with pytest.raises(RefusedError, match=r"no usable feature for prompts such as 'wolf 0': its weights"):
        class_vectors(load_teacher(stub(**{spoilt: "wolf 6"})), PROMPTS, batch_size=4)


def test_prompts_that_cancel_each_other_have_no_class_vector(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    opposite = {"up": [1.0, 0.0], "down": [-1.0, 0.0]}
    monkeypatch.setattr(teacher, "encode_texts", lambda texts: np.array([opposite[text] for text in texts], np.float32))
    with pytest.raises(RefusedError, match="no usable feature for a class vector"):
        class_vectors(teacher, [["up", "down"]], batch_size=8)


@pytest.mark.parametrize(("context_length", "cut"), [(3, 5), (4, 4), (5, 1), (6, 0)])
def test_a_prompt_is_cut_when_it_has_more_tokens_than_are_read(context_length: int, cut: int) -> None:
    prompts = [["cat", "a cat"], ["a cat b", "c d e", "f g h", "a b c d"]]
    wanted = sum(len(prompt.split()) + 2 > context_length for of_class in prompts for prompt in of_class)
    assert count_cut_prompts(load_teacher(stub(context_length=context_length)), prompts) == wanted == cut


def test_no_prompt_is_known_to_be_cut_where_the_teacher_cannot_tell(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert count_cut_prompts(teacher, []) == 0
    monkeypatch.setattr(teacher, "context_length", None)
    assert count_cut_prompts(teacher, [["a b c d e f g h i j k l m n o p q r s t"]]) == 0
    monkeypatch.setattr(teacher, "context_length", 1)
    monkeypatch.setattr(teacher, "count_tokens", lambda texts: None)
    assert count_cut_prompts(teacher, [["a b c"]]) == 0
