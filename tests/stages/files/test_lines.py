"""Lines are those of the standard library, and of a long one only its beginning is kept."""

import io
from collections.abc import Iterator

import pytest

from stages.files.lines import ENCODINGS, read_ahead, read_line

LINES = [b"one\n", b"\n", b"\r\n", b"four\n", b"12345\n", b"x" * 3000 + b"\n", b"after\n", b"no end"]


@pytest.mark.parametrize("max_bytes", [1, 2, 5, 6, 7, 100, 3000, 3001, 3002])
def test_every_line_has_its_length_and_as_much_of_it_as_allowed(max_bytes: int) -> None:
    stream = io.BytesIO(b"".join(LINES))
    found = [read_line(stream, max_bytes) for _ in LINES]
    assert found == [(line[:max_bytes], len(line)) for line in LINES]
    assert read_line(stream, max_bytes) == read_line(stream, max_bytes) == (b"", 0)


class CountedStream(io.BytesIO):
    """Remembers the largest piece that it was asked for."""

    largest = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        assert size is not None and size > 0, "a line was read without a limit"
        self.largest = max(self.largest, size)
        return super().readline(size)


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_of_many_megabytes_is_passed_in_pieces(end: bytes) -> None:
    stream = CountedStream(b"x" * (5 << 20) + end + b"next\n" * len(end))
    assert read_line(stream, 10) == (b"x" * 10, (5 << 20) + len(end))
    assert read_line(stream, 10) == ((b"next\n", 5) if end else (b"", 0))
    assert stream.largest == 1 << 20


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_character_of_an_encoding_but_the_line_feed_has_its_byte(encoding: str) -> None:
    characters = [chr(code) for code in range(0x3000) if chr(code) != "\n"]
    assert not any(b"\n" in character.encode(encoding, "ignore") for character in characters)
    assert "\n".encode(encoding) == b"\n"


@pytest.mark.parametrize("items", [[], [1], [1, 2, 3], [None, 0, None]])
def test_items_read_ahead_are_the_same_items(items: list) -> None:
    assert list(read_ahead(iter(items))) == items


def test_at_the_last_item_what_they_came_from_is_closed() -> None:
    state: list[str] = []

    def items() -> Iterator[int]:
        yield 1
        state.append("second")
        yield 2
        state.append("closed")

    ahead = read_ahead(items())
    assert state == [] and next(ahead) == 1 and state == ["second"]
    assert next(ahead) == 2 and state == ["second", "closed"]
    assert list(ahead) == []


def test_an_error_behind_an_item_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the file is cut")

    with pytest.raises(ValueError, match="the file is cut"):
        next(read_ahead(items()))
