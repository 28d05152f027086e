"""Errors are grouped by what the caller can do, and a misspelt name is answered with the nearest one."""

import pytest

from cache_schema import errors
from cache_schema.errors import PipelineError, RefusedError, UsageError, nearest, unknown_name


@pytest.mark.parametrize(
    ("name", "exit_code", "is_value_error"),
    [
        ("UsageError", 2, True),
        ("EnvironmentProblem", 1, False),
        ("DivergedError", 1, False),
        ("PartsFailed", 3, False),
        ("RefusedError", 4, True),
        ("DamagedError", 4, True),
        ("MismatchError", 4, True),
        ("LockedError", 4, True),
        ("UnfinishedError", 4, True),
        ("TooManyBadRows", 4, True),
    ],
)
def test_every_error_ends_the_command_with_the_code_of_its_family(
    name: str, exit_code: int, is_value_error: bool
) -> None:
    error = getattr(errors, name)("words for a person")
    assert isinstance(error, PipelineError) and str(error) == "words for a person"
    assert error.exit_code == exit_code
    assert isinstance(error, ValueError) == is_value_error
    assert isinstance(error, RefusedError) == (exit_code == 4)


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("imaginery.v0", ["imaginary.v0", "second.v0"], " (did you mean 'imaginary.v0'?)"),
        ("zzz", ["imaginary.v0"], ""),
        ("", ["a"], ""),
        ("a", [], ""),
        ("größe", iter(["grösse", "breite"]), " (did you mean 'grösse'?)"),
    ],
)
def test_the_nearest_name_is_offered_and_none_that_is_far_away(name: str, known: list[str], expected: str) -> None:
    assert nearest(name, known) == expected


def test_an_unknown_name_lists_the_known_ones_in_order_after_the_nearest() -> None:
    error = unknown_name("loss", "clio", iter(["siglip", "clip", "affinity"]))
    assert isinstance(error, UsageError)
    assert str(error) == "unknown loss 'clio' (did you mean 'clip'?); known: affinity, clip, siglip"
    assert str(unknown_name("index", "flat", [])) == "unknown index 'flat'; known: none"
