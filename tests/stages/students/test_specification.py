"""A specification is a name and options, each known, given once and read by the reader of its own."""

import pytest

from cache_schema.errors import UsageError
from stages.students.specification import name_and_options, pixels, share, switch

READERS = {"image_size": pixels, "drop": share, "pretrained": switch}


@pytest.mark.parametrize(
    ("rest", "name", "options"),
    [
        ("resnet10t", "resnet10t", {}),
        ("resnet10t?", "resnet10t", {}),
        ("resnet10t?&&", "resnet10t", {}),
        ("", "", {}),
        ("?drop=0.5", "", {"drop": 0.5}),
        ("a/b:c@d?image_size=64", "a/b:c@d", {"image_size": 64}),
        ("net?drop=1e-3&pretrained=true&image_size=1", "net", {"drop": 0.001, "pretrained": True, "image_size": 1}),
    ],
)
def test_a_name_comes_before_the_question_mark_and_its_options_after(rest: str, name: str, options: dict) -> None:
    found = name_and_options(rest, READERS)
    assert found == (name, options)
    assert [type(value) for value in found[1].values()] == [type(value) for value in options.values()]


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (
            "net?imagesize=64",
            "unknown option of student net 'imagesize' (did you mean 'image_size'?); known: drop, image_size, "
            "pretrained",
        ),
        ("net?drop", "student 'net?drop' has the option 'drop': write each option once, as name=value"),
        (
            "net?drop=0.1&drop=0.1",
            "student 'net?drop=0.1&drop=0.1' has the option 'drop=0.1': write each option once, as name=value",
        ),
        ("net?drop=", "student 'net?drop=' has drop='', which is not a number: correct it"),
        ("net?drop=0=1", "student 'net?drop=0=1' has drop='0=1', which is not a number: correct it"),
        ("net?drop=0.1?image_size=8", "has drop='0.1?image_size=8', which is not a number: correct it"),
        ("net?=1", "unknown option of student net ''"),
        ("net?DROP=0.1", "unknown option of student net 'DROP'"),
    ],
)
def test_an_option_that_is_unknown_or_given_twice_or_cannot_be_read_is_named(rest: str, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        name_and_options(rest, READERS)
    assert message in str(refusal.value)


@pytest.mark.parametrize(("value", "size"), [("1", 1), ("224", 224), ("4096", 4096), ("0032", 32)])
def test_pixels_are_whole_numbers_up_to_4096(value: str, size: int) -> None:
    assert pixels(value) == size


@pytest.mark.parametrize("value", ["0", "4097", "-1", "+1", "1.0", "1e2", "", " 8", "²", "8_0", "9" * 40, "nan"])
def test_other_pixels_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a whole number of pixels from 1 to 4096$"):
        pixels(value)


@pytest.mark.parametrize(("value", "number"), [("0", 0.0), ("-0.0", 0.0), (".25", 0.25), ("0.9999", 0.9999)])
def test_a_share_is_a_number_from_0_to_below_1(value: str, number: float) -> None:
    assert share(value) == number


@pytest.mark.parametrize("value", ["1", "-0.1", "inf", "-inf", "nan", "1e300"])
def test_a_number_that_is_no_share_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"^is not from 0 to below 1$"):
        share(value)


@pytest.mark.parametrize("value", ["", "half", "0,5", "10%"])
def test_a_share_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a number$"):
        share(value)


def test_a_switch_is_spelt_true_or_false_and_no_other_way() -> None:
    assert switch("true") is True and switch("false") is False
    for value in ("True", "yes", "1", "on", "", "truefalse"):
        with pytest.raises(ValueError, match=r"^is neither true nor false$"):
            switch(value)
