"""Lines are those of the standard library, and of a long one only its beginning is kept."""

import io
from collections.abc import Iterator

import pytest

from cache_schema.errors import RefusedError
from stages.files.lines import ENCODINGS, LineCheck, read_ahead, read_line

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


def verdict_of(content: bytes, *, chunk_bytes: int = 1 << 20, returns_ok: bool = False) -> str:
    check = LineCheck("u", returns_ok=returns_ok)
    try:
        for at in range(0, len(content), chunk_bytes):
            check.add(content[at : at + chunk_bytes])
        check.finish()
    except RefusedError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [b"", b"a\r\nb\r\n", b"a\n\n", b"a\r", b"\r\n", b"a\0b\n", b"\0\n" * 9, b"a" + bytes(4095) + b"b"],
    ids=ascii,
)
def test_a_sound_text_passes_the_check_whatever_its_chunks(content: bytes, chunk_bytes: int) -> None:
    assert verdict_of(content, chunk_bytes=chunk_bytes) == ""


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\nb\rc\n", "a carriage return without a line feed in line 2 (offset 3)"),
        (b"a\r\nb\r\r\n", "a carriage return without a line feed in line 2 (offset 4)"),
        (b"a\nbc\0", "zero bytes stand in place of text from line 2 (offset 4)"),
        (b"a\n" + bytes(90), "zero bytes stand in place of text from line 2 (offset 2)"),
        (b"\0\0a\n\0b\n\0\0\0", "zero bytes stand in place of text from line 3 (offset 7)"),
    ],
    ids=["return", "two returns", "one zero", "zeros", "other zeros"],
)
def test_bare_returns_and_tails_of_zeros_are_refused_with_their_place(
    content: bytes, said: str, chunk_bytes: int
) -> None:
    assert said in verdict_of(content, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 3000, 4099, 5000, 1 << 20])
def test_a_hole_of_zeros_is_refused_with_its_place_whatever_the_chunks(chunk_bytes: int) -> None:
    content = b"a\nb" + bytes(4096) + b"c\n"
    said = "zero bytes stand in place of text from line 2 (offset 3)"
    assert said in verdict_of(content, chunk_bytes=chunk_bytes)
    assert said in verdict_of(content[:-2], chunk_bytes=chunk_bytes)


def test_returns_may_be_allowed() -> None:
    assert verdict_of(b"a\rb\n", returns_ok=True) == ""
