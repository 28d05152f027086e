"""Failed parts are listed in one error, which says whether running again can help."""

import pytest

from cache_schema.errors import PartsFailed, RefusedError
from stages.parts.failed import FailedPart, parts_failed


def failed(number: int, exit_code: int) -> FailedPart:
    return FailedPart("image", number, f"reason {number}", exit_code)


@pytest.mark.parametrize(
    ("codes", "kind", "words"),
    [
        ((3,), PartsFailed, "1 of 9 parts failed (image part 0: reason 0): run again to resume"),
        ((4, 3), PartsFailed, "2 of 9 parts failed (image part 0: reason 0; image part 1: reason 1): run again"),
        ((4, 4), RefusedError, "mend what is named and run again; the other parts are committed"),
    ],
)
def test_parts_that_would_all_be_refused_again_are_a_refusal_and_others_can_be_resumed(
    codes: tuple[int, ...], kind: type, words: str
) -> None:
    error = parts_failed([failed(number, code) for number, code in enumerate(codes)], 9)
    assert type(error) is kind and words in str(error)
    assert error.exit_code == {PartsFailed: 3, RefusedError: 4}[kind]


def test_five_parts_are_named_and_the_others_counted() -> None:
    said = str(parts_failed([failed(number, 3) for number in range(7)], 7))
    assert "image part 4: reason 4 and 2 more)" in said and "reason 5" not in said


def test_a_failed_part_is_the_same_in_json_for_every_command() -> None:
    assert failed(2, 4).to_json() == {"modality": "image", "part": 2, "error": "reason 2", "exit_code": 4}
