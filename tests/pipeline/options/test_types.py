"""An option's value is taken as it was meant, or refused in one line with the rule."""

from pathlib import Path
from typing import Any

import click
import pytest

from pipeline.executors.config import WorkerRange
from pipeline.options.types import Choice, Count, FilePath, HostAndPort, NamedNumber, Number, Text, WorkerCount


def refusal_of(kind: click.ParamType, value: Any) -> str:
    with pytest.raises(click.BadParameter) as refusal:
        kind.convert(value, None, None)
    return refusal.value.message


@pytest.mark.parametrize(("value", "number"), [("1", 1), ("007", 7), (5, 5), ("2147483647", 2**31 - 1)])
def test_a_count_in_plain_digits_is_a_whole_number(value: object, number: int) -> None:
    found = Count().convert(value, None, None)
    assert found == number and type(found) is int


@pytest.mark.parametrize(
    "value", ["", "1e3", "0x10", "1_000", "-1", "+1", " 1", "1\n", "1.0", "٣", "²", True, 1.0, None, ["1"], "9" * 21]
)
def test_a_count_in_other_words_is_refused_with_the_rule(value: object) -> None:
    said = f"{value!r} is not a whole number in plain digits: give a number from 1 to 9, such as 64"
    assert refusal_of(Count(1, 9), value) == said


@pytest.mark.parametrize("value", ["2", "10", 2, 10, -3])
def test_a_count_out_of_range_is_refused_with_both_ends(value: object) -> None:
    said = f"{value!r} is out of range: give a number from 3 to 9, such as 64"
    assert refusal_of(Count(3, 9), value) == said
    assert [Count(3, 9).convert(at, None, None) for at in ("3", "9")] == [3, 9]


def test_the_example_of_a_rule_is_never_below_the_least() -> None:
    assert refusal_of(Count(1024), "0").endswith("such as 1024")


def test_a_refusal_shows_the_beginning_of_a_long_value_and_no_digits_of_a_huge_number() -> None:
    shown = refusal_of(Count(), "é" * 5000)
    assert shown.startswith(f"'{'é' * 59}... (5,002 characters) is not a whole number")
    assert refusal_of(Count(), 10**5000).startswith("a number of hundreds of digits is out of range")
    assert refusal_of(Number(at_least=0), 10**5000).startswith("a number of hundreds of digits is out of range")


@pytest.mark.parametrize(
    ("value", "least", "most"), [("4", 4, 4), (4, 4, 4), ("1:8", 1, 8), ("8:8", 8, 8), ("1:4096", 1, 4096)]
)
def test_a_number_of_workers_is_one_number_or_a_range(value: object, least: int, most: int) -> None:
    assert WorkerCount().convert(value, None, None) == WorkerRange(least, most)


def test_a_range_that_was_taken_already_stays_as_it_is() -> None:
    asked = WorkerRange(2, 3)
    assert WorkerCount().convert(asked, None, None) is asked


@pytest.mark.parametrize("value", ["", "many", "1:", ":8", "1:2:3", "-1", "1-8", " 1:8", "1:8\n", True, 1.0, None])
def test_what_is_no_number_of_workers_is_refused_with_both_forms(value: object) -> None:
    said = f"{value!r} is no number of workers: give a number from 1 to 4096, or MIN:MAX such as 1:8"
    assert refusal_of(WorkerCount(), value) == said


@pytest.mark.parametrize("value", ["0", "0:3", "3:2", "4097", "1:4097", 0])
def test_a_range_of_workers_needs_the_smaller_first_and_no_more_than_the_most(value: object) -> None:
    said = f"{value!r} is out of range: give a number from 1 to 4096, or MIN:MAX such as 1:8, the smaller first"
    assert refusal_of(WorkerCount(), value) == said


@pytest.mark.parametrize(
    ("value", "number"), [("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("+2", 2.0), ("1e-3", 1e-3), ("1E2", 100.0), (3, 3.0)]
)
def test_a_number_in_decimals_is_a_float(value: object, number: float) -> None:
    found = Number(above=0).convert(value, None, None)
    assert found == number and type(found) is float


@pytest.mark.parametrize(
    "value", ["", "nan", "inf", "-inf", "1_0", "0x1", "half", "1e", ".", "1e1000", True, None, [1]]
)
def test_a_number_in_other_words_is_refused_with_the_rule(value: object) -> None:
    said = f"{value!r} is not a number: give a finite number from 0, up to 1"
    assert refusal_of(Number(at_least=0, at_most=1), value) == said


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), "1e999", "-0.1", "1.0001", 10**400], ids=str
)
def test_a_number_that_is_not_finite_or_not_in_range_is_refused(value: object) -> None:
    assert "is out of range: give a finite number from 0, up to 1" in refusal_of(Number(at_least=0, at_most=1), value)


def test_the_ends_of_a_range_belong_to_it_but_for_the_one_above_which_a_number_must_be() -> None:
    assert [Number(at_least=0, at_most=1).convert(at, None, None) for at in ("0", "1")] == [0.0, 1.0]
    assert refusal_of(Number(above=0), "0") == "'0' is out of range: give a finite number above 0, up to 1e+09"
    assert Number(above=0).convert("1e9", None, None) == 1e9


def test_a_choice_is_taken_exactly_as_written_and_another_is_refused_with_the_nearest() -> None:
    devices = Choice(["cpu", "cuda"])
    assert devices.convert("cuda", None, None) == "cuda"
    assert refusal_of(devices, "cudo") == "'cudo' is none of cpu, cuda (did you mean 'cuda'?)"
    assert refusal_of(devices, "CPU").startswith("'CPU' is none of cpu, cuda")
    assert refusal_of(devices, "zzz") == "'zzz' is none of cpu, cuda"
    assert refusal_of(devices, 3) == "3 is none of cpu, cuda"
    assert refusal_of(devices, "cpu ").startswith("'cpu ' is none of")


@pytest.mark.parametrize("value", ["", "  ", "\t\n", "a\0b"])
def test_a_word_of_blanks_or_with_nul_names_nothing(value: str) -> None:
    assert refusal_of(Text("URI"), value) == f"{value!r} names nothing: give a URI"


def test_a_word_is_kept_as_it_is_and_what_is_no_text_is_to_be_quoted() -> None:
    assert Text().convert(" ключ с пробелом ", None, None) == " ключ с пробелом "
    assert refusal_of(Text(), 3) == "3 is not text: put it between quotes"
    assert refusal_of(Text(), True) == "True is not text: put it between quotes"


def test_words_and_pairs_of_a_repeated_option_stand_on_lines_of_their_own_in_the_environment() -> None:
    for kind in (Text("URI"), FilePath("DIR"), NamedNumber(Number(at_least=0))):
        assert list(kind.split_envvar_value("a b\nc:d")) == ["a b", "c:d"]


def test_a_path_is_absolute_from_where_one_stands_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    convert = FilePath("DIR").convert
    assert convert("cache", None, None) == tmp_path / "here" / "cache"
    assert convert("~/cache", None, None) == tmp_path / "cache"
    assert convert("/a b/ü", None, None) == Path("/a b/ü")
    assert convert(Path("given"), None, None) == Path("given")


@pytest.mark.parametrize("value", ["", " ", "a\0b"])
def test_a_path_that_names_nothing_is_refused_as_a_word_is(value: str) -> None:
    assert refusal_of(FilePath("DIR"), value) == f"{value!r} names nothing: give a DIR"


def test_a_named_number_is_split_at_its_first_equals_sign() -> None:
    weight = NamedNumber(Number(at_least=0, at_most=10))
    assert weight.convert("vl=0.7", None, None) == ("vl", 0.7)
    assert weight.convert(("vl", 0.7), None, None) == ("vl", 0.7)
    assert refusal_of(weight, "vl=0=7").startswith("'0=7' is not a number")
    assert refusal_of(weight, "vl=11").startswith("'11' is out of range")


@pytest.mark.parametrize("value", ["", "vl", "=0.7", "=", 0.7, None])
def test_a_named_number_without_name_or_sign_is_refused_with_an_example(value: object) -> None:
    said = f"{value!r} is not NAME=X: write a name and a number, such as vl=0.7"
    assert refusal_of(NamedNumber(Number(at_least=0)), value) == said


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "head-node.cluster_1:1", "[::1]:6379", "[fe80::A]:65535"])
def test_the_address_of_a_cluster_is_host_and_port(address: str) -> None:
    assert HostAndPort().convert(address, None, None) == address


@pytest.mark.parametrize(
    "value", ["10.0.0.1", ":6379", "host:", "host:port", "ray://host:1", "a b:1", "::1:6379", "[x]:1", "h:123456"]
)
def test_what_is_no_address_is_refused_with_an_example(value: str) -> None:
    said = f"{value!r} is no address: give HOST:PORT of the cluster's head, such as 10.0.0.1:6379"
    assert refusal_of(HostAndPort(), value) == said


def test_help_names_a_value_as_the_command_line_takes_it() -> None:
    def shown(kind: click.ParamType, **settings: Any) -> str:
        option = click.Option(["--x"], type=kind, **settings)
        return option.make_metavar(click.Context(click.Command("c")))

    assert shown(Count()) == "N" and shown(Choice(["cpu", "cuda"])) == "[cpu|cuda]"
    assert shown(Text("URI")) == "URI" and shown(FilePath("DIR")) == "DIR" and shown(HostAndPort()) == "HOST:PORT"
    argument = click.Argument(["cache"], type=FilePath("DIR"))
    assert argument.make_metavar(click.Context(click.Command("c"))) == "CACHE"
