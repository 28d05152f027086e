"""Keyed lines are found by their places alone, as splitting the whole file at line feeds and tabs finds them."""

import random
from dataclasses import astuple
from pathlib import Path

import pytest

from cache_schema.errors import DamagedError
from stages.files.keyed_lines import KeyedLine, keyed_lines, require_line_index


class BytesFile:
    """A source file in memory that remembers how it was read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size_bytes = len(data)
        self.asked: list[tuple[int, int]] = []

    def read_at(self, offset_bytes: int, size_bytes: int) -> bytes:
        self.asked.append((offset_bytes, size_bytes))
        return self.data[offset_bytes : offset_bytes + size_bytes]

    def stream(self, offset_bytes: int = 0):  # type: ignore[no-untyped-def]
        raise AssertionError("lines are read at places")


def lines_of(data: bytes, *, offset_bytes: int = 0, chunk_bytes: int = 0) -> list[KeyedLine]:
    return list(keyed_lines("t.tsv", BytesFile(data), offset_bytes=offset_bytes, chunk_bytes=chunk_bytes))


def split_at_once(data: bytes) -> list[tuple[int, str, int, int]]:
    """The same by splitting: (offset, key, offset of the second column, its bytes)."""
    found, offset = [], 0
    for line in data.split(b"\n")[:-1]:
        columns = line.split(b"\t")
        key = columns[0].strip().decode("utf-8", "backslashreplace")
        has_value = len(columns) > 1
        value = (offset + len(columns[0]) + 1, len(columns[1])) if has_value else (offset + len(line), -1)
        found.append((offset, key, *value))
        offset += len(line) + 1
    return found


def test_a_line_is_its_key_and_the_place_of_its_second_column() -> None:
    data = b"a\tQUJD\nkey two\t\nthree\tx\ty\tz\nno value\n"
    assert lines_of(data) == [
        KeyedLine(0, "a", 2, 4),
        KeyedLine(7, "key two", 15, 0),
        KeyedLine(16, "three", 22, 1),
        KeyedLine(28, "no value", 36, -1),
    ]
    assert data[2:6] == b"QUJD" and data[22:23] == b"x"


def test_keys_are_stripped_and_bytes_that_are_not_utf_8_stay_different() -> None:
    lines = lines_of(b" \xc3\xa9 \r\t1\n\xe9\t1\n\xe8\t1\n\xff\xfe\t1\r\n")
    assert [line.key for line in lines] == ["é", "\\xe9", "\\xe8", "\\xff\\xfe"]
    assert lines[-1].value_bytes == 2, "a carriage return belongs to the value, whose reader strips it"


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 5, 64, 1 << 20])
def test_lines_are_those_of_a_split_wherever_chunks_end(chunk_bytes: int) -> None:
    random.seed(chunk_bytes)
    parts = [b"k", b"\xc3\xa9", b"\t", b"\t", b"v" * 9, b" ", b"\xff"]
    data = b"".join(b"k%d" % n + b"".join(random.choices(parts, k=n % 9)) + b"\n" for n in range(60))
    assert [astuple(line) for line in lines_of(data, chunk_bytes=chunk_bytes)] == split_at_once(data)


def test_reading_can_start_at_every_line() -> None:
    data = b"a\t1\nbb\t22\nccc\t333\n"
    lines = lines_of(data)
    for number, line in enumerate(lines):
        assert lines_of(data, offset_bytes=line.offset_bytes, chunk_bytes=4) == lines[number:]
    assert lines_of(data, offset_bytes=len(data)) == [] and lines_of(b"") == []


def test_a_line_that_is_read_from_the_middle_of_a_file_is_named_by_its_byte() -> None:
    with pytest.raises(DamagedError, match=r"t\.tsv: a line at byte 4 has no key"):
        lines_of(b"a\t1\n\tx\n", offset_bytes=4)


def test_a_byte_order_mark_before_the_first_key_is_no_part_of_it() -> None:
    lines = lines_of(b"\xef\xbb\xbfa\t1\n\xef\xbb\xbfb\t2\n")
    assert [line.key for line in lines] == ["a", "\ufeffb"]


def test_a_file_is_read_once_in_order_and_in_pieces_of_4_mib_unless_told() -> None:
    file = BytesFile(b"a\t" + b"x" * (9 << 20) + b"\n")
    (line,) = keyed_lines("t.tsv", file)
    assert (line.value_offset, line.value_bytes) == (2, 9 << 20)
    assert file.asked == [*((at << 20, 4 << 20) for at in (0, 4, 8)), (len(file.data), 4 << 20)]
    file = BytesFile(b"a\t1\nb\t2\n")
    assert len(list(keyed_lines("t.tsv", file, chunk_bytes=5))) == 2 and file.asked == [(0, 5), (5, 5), (8, 5)]


def test_of_a_large_value_nothing_is_kept() -> None:
    line = lines_of(b"key\t" + b"x" * (1 << 20) + b"\n", chunk_bytes=1 << 12)[0]
    assert line == KeyedLine(0, "key", 4, 1 << 20)
    assert {type(value) for value in astuple(line)} == {int, str}


@pytest.mark.parametrize("data", [b"a\t1\n\tx\n", b"a\t1\n  \tx\n", b"a\t1\n\n", b"a\t1\n \r\n"])
@pytest.mark.parametrize("chunk_bytes", [1, 0])
def test_a_line_without_a_key_is_refused_with_its_place_and_the_form(data: bytes, chunk_bytes: int) -> None:
    said = r"t\.tsv: line 2 \(byte 4\) has no key: a line is KEY, a tab and VALUE; fetch the file again, or name its"
    with pytest.raises(DamagedError, match=said):
        lines_of(data, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("rest", [b"b", b"b\t", b"b\t2", b"b\t2\t"])
def test_a_last_line_without_an_end_is_a_cut_file_after_all_lines_before_it(rest: bytes) -> None:
    lines = keyed_lines("t.tsv", BytesFile(b"a\t1\n" + rest))
    assert next(lines).key == "a"
    said = rf"t\.tsv ends inside line 2 \(byte 4\), at {4 + len(rest)} bytes: it is cut; .* end its last line with a"
    with pytest.raises(DamagedError, match=said):
        next(lines)


@pytest.mark.parametrize("chunk_bytes", [1 << 16, 0])
def test_a_key_may_have_64_kib_and_no_more(chunk_bytes: int) -> None:
    key = b"k" * (1 << 16)
    assert len(lines_of(key + b"\tv\n", chunk_bytes=chunk_bytes)[0].key) == 65_536
    file = BytesFile(b"a\t1\n" + key + b"k" * (8 << 20))
    with pytest.raises(DamagedError, match=r"t\.tsv: no tab in 65,536 bytes of line 2 \(byte 4\): a line is KEY"):
        list(keyed_lines("t.tsv", file, chunk_bytes=chunk_bytes))
    assert sum(size for _, size in file.asked) <= max(chunk_bytes * 2 + 4, 4 << 20), "it was not read to its end"


@pytest.mark.parametrize("content", ["0\n7\n123\n", "123", "123\n\n", f"{'9' * 40}\n" * 9 + "123\n"])
def test_a_line_index_that_ends_with_the_last_line_is_the_right_one(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.lineidx").write_text(content)
    require_line_index(str(tmp_path / "a.tsv"), 123)


@pytest.mark.parametrize(
    ("content", "stated"),
    [
        (b"0\n7\n", "7:"),
        (b"0\n1234\n", "1234"),
        (b"", "nothing"),
        (b"\n\n", "nothing"),
        (b"-123\n", "-123"),
        (b"x" * 30, "x{20}:"),
        (b"\xff\n", "�"),
    ],
)
def test_another_line_index_is_refused_with_both_places(content: bytes, stated: str, tmp_path: Path) -> None:
    index = tmp_path / "a.b.lineidx"
    index.write_bytes(content)
    said = rf"the last line of {tmp_path}/a\.b\.tsv starts at byte 123, {index} says {stated}.* or remove the \.lineidx"
    with pytest.raises(DamagedError, match=said):
        require_line_index(str(tmp_path / "a.b.tsv"), 123)


def test_no_line_index_is_needed_and_none_is_looked_for_behind_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_line_index(str(tmp_path / "a.tsv"), 123)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "https:").mkdir()
    (tmp_path / "https:" / "a.lineidx").write_text("7\n")
    require_line_index("https://a.tsv", 123)
