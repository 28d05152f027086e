"""An evaluation is told from its configuration alone: what is asked twice or out of bounds is refused at once."""

from pathlib import Path
from typing import Any

import pytest

from cache_schema.errors import UsageError
from stages.evaluate.config import EvaluateConfig


def config(**fields: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"model": "run", "data": Path("data"), **fields})


def test_a_model_and_pictures_are_enough_and_a_student_is_compared_with_its_teacher() -> None:
    asked = config()
    assert (asked.teacher, asked.compare, asked.device) == (None, True, "auto")
    assert (asked.batch_size, asked.num_threads, asked.decode_workers) == (64, 0, None)


@pytest.mark.parametrize("missing", ["model", "data"])
def test_neither_model_nor_pictures_can_be_left_out(missing: str) -> None:
    with pytest.raises(TypeError, match=missing):
        EvaluateConfig(**{name: "x" for name in ("model", "data") if name != missing})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0: use a value from 1 to 2147483647"),
        ({"num_threads": -1}, "num_threads is -1: use a value from 0 to 4096"),
        ({"decode_workers": 4097}, "decode_workers is 4097: use a value from 0 to 4096"),
        (
            {"teacher": "python:a:b", "compare": False},
            "teacher python:a:b is named and the comparison with a teacher is switched off: drop one",
        ),
        ({"teacher": "", "compare": False}, "switched off: drop one"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        config(**fields)
    assert message in str(refusal.value)


def test_a_comparison_may_be_switched_off_or_a_teacher_named() -> None:
    assert config(compare=False).compare is False
    assert config(teacher="python:a:b", decode_workers=0).teacher == "python:a:b"
