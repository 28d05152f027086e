"""`pipeline list` shows every entry of a registry with its form and one line about it."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from pipeline.commands.list import REGISTRIES
from stages.distill.losses import LOSSES
from stages.feature_files import FORMATS
from stages.sources import SOURCES
from stages.students import STUDENTS
from stages.teachers import TEACHERS

ENTRIES: dict[str, Any] = {
    "teachers": TEACHERS,
    "students": STUDENTS,
    "sources": SOURCES,
    "formats": FORMATS,
    "losses": LOSSES,
}


def test_whatever_has_a_registry_can_be_listed() -> None:
    assert set(REGISTRIES) == set(ENTRIES)


@pytest.mark.parametrize("what", REGISTRIES)
def test_every_entry_is_listed_once_with_a_form_that_names_it_and_a_sentence(
    invoke: Callable[..., Result], what: str
) -> None:
    result = invoke("list", what, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)[what]
    assert [entry["name"] for entry in found] == list(ENTRIES[what])
    for entry in found:
        forms = entry["form"].split(" | ")
        assert all(form.startswith(entry["name"]) for form in forms) and len(set(forms)) == len(forms)
        assert len(entry["description"]) > 10 and "`" not in entry["description"] and "\n" not in entry["description"]


@pytest.mark.parametrize("what", REGISTRIES)
def test_people_get_a_line_for_each_and_the_option_that_takes_it(invoke: Callable[..., Result], what: str) -> None:
    lines = invoke("list", what).stdout.splitlines()
    assert lines[0].split()[0] == "name" and len(lines) == 1 + len(ENTRIES[what]) + 1
    assert [line.split()[0] for line in lines[1:-1]] == list(ENTRIES[what])
    assert lines[-1] == f"for {REGISTRIES[what][3]}"


def test_a_source_says_what_it_holds_its_extensions_without_compressions_and_its_options(
    invoke: Callable[..., Result],
) -> None:
    found = {entry["name"]: entry for entry in json.loads(invoke("list", "sources", "--json").stdout)["sources"]}
    text, tar = found["text"], found["tar"]
    assert text["of"] == "text" and ".txt" in text["extensions"].split() and ".gz" not in text["extensions"]
    assert "image" in tar["of"].split() and ".tar" in tar["extensions"].split()
    assert "images" in tar["options"].split()
    assert all(entry["options"].split() == list(SOURCES[name].option_names) for name, entry in found.items())


def test_an_entry_of_somebody_else_is_described_from_its_docstring(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ours() -> None:
        """Trains `ours:WIDTH` or `ours:WIDTH?deep=1`, and again `ours:WIDTH`.

        More about it.
        """

    ours.__module__ = "stages.students"
    silent = SimpleNamespace(__module__="stages.students", __doc__=None)
    monkeypatch.setitem(STUDENTS, "ours", ours)  # type: ignore[arg-type]
    monkeypatch.setitem(STUDENTS, "silent", silent)  # type: ignore[arg-type]
    found = {entry["name"]: entry for entry in json.loads(invoke("list", "students", "--json").stdout)["students"]}
    assert found["ours"] == {
        "name": "ours",
        "form": "ours:WIDTH | ours:WIDTH?deep=1",
        "description": "Trains ours:WIDTH or ours:WIDTH?deep=1, and again ours:WIDTH.",
    }
    assert found["silent"]["form"] == "silent:..."
