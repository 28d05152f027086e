"""A small file is parsed once for as long as it is the same file."""

import os
from pathlib import Path

import pytest

from cache_schema import atomic
from cache_schema.errors import DamagedError
from cache_schema.json_file import read_json
from cache_schema.read_once import ReadOnce


class Parser:
    """Parses a file into a new list, and counts how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path) -> list[bytes]:
        self.count += 1
        return [path.read_bytes()]


def test_an_unchanged_file_gives_the_same_object_without_parsing(tmp_path: Path) -> None:
    atomic.publish_bytes(tmp_path / "a", b"one")
    parse, read_once = Parser(), ReadOnce()
    first = read_once.get(tmp_path / "a", parse)
    assert read_once.get(tmp_path / "a", parse) is first and first == [b"one"]
    assert parse.count == 1


def test_every_path_is_remembered_by_itself(tmp_path: Path) -> None:
    parse, read_once = Parser(), ReadOnce()
    for name in ("a", "b"):
        atomic.publish_bytes(tmp_path / name, name.encode())
    assert [read_once.get(tmp_path / name, parse) for name in "abab"] == [[b"a"], [b"b"]] * 2
    assert parse.count == 2


def test_a_replaced_file_of_the_same_size_and_time_is_parsed_anew(tmp_path: Path) -> None:
    path, parse, read_once = tmp_path / "a", Parser(), ReadOnce()
    seen = []
    for content in (b"one", b"two", b"two"):
        atomic.publish_bytes(path, content)
        os.utime(path, ns=(1, 1))
        seen.append(read_once.get(path, parse)[0])
    assert seen == [b"one", b"two", b"two"] and parse.count == 3


def test_a_file_that_is_gone_is_asked_of_the_parser_who_says_what_is_wrong(tmp_path: Path) -> None:
    path, read_once = tmp_path / "a.json", ReadOnce()
    with pytest.raises(DamagedError, match=r"a\.json is missing"):
        read_once.get(path, read_json)
    atomic.publish_json(path, [1])
    assert read_once.get(path, read_json) == [1]
    path.unlink()
    with pytest.raises(DamagedError, match=r"a\.json is missing"):
        read_once.get(path, read_json)


def test_what_was_parsed_of_a_file_that_is_not_there_is_not_remembered(tmp_path: Path) -> None:
    answers, read_once = iter(["nothing yet", "nothing still"]), ReadOnce()
    assert [read_once.get(tmp_path / "a", lambda path: next(answers)) for _ in range(2)] == [
        "nothing yet",
        "nothing still",
    ]


def test_a_parser_that_failed_is_asked_again(tmp_path: Path) -> None:
    path, read_once = tmp_path / "a.json", ReadOnce()
    path.write_bytes(b"{")
    for _ in range(2):
        with pytest.raises(DamagedError, match="is damaged"):
            read_once.get(path, read_json)
