"""Lines of a stream in bounded memory."""

from collections.abc import Iterator
from typing import BinaryIO, TypeVar

from cache_schema.errors import DamagedError, RefusedError

MAX_LINE_BYTES = 1 << 20
"""A longer line of text is set aside unread, as `text-too-long`."""

ENCODINGS = ("utf-8", "latin-1", "iso-8859-15", "cp1252")
"""All have the line feed as the byte 10, so that lines are found without decoding."""

SIGNATURE = b"\xef\xbb\xbf"
"""What some programs write at the start of a UTF-8 file; it belongs to the file and not to its text."""

_PIECE_BYTES = 1 << 20
_HOLE = bytes(4096)

Item = TypeVar("Item")


def read_line(stream: BinaryIO, max_bytes: int) -> tuple[bytes, int]:
    """Returns the next line with its line feed, and how long it is; of one over `max_bytes` only the beginning.

    At the end of the stream the line is empty; the last one may lack its line feed.
    """
    line = stream.readline(max_bytes)
    line_bytes = len(line)
    last = line
    while line_bytes >= max_bytes and not last.endswith(b"\n"):
        last = stream.readline(_PIECE_BYTES)
        if not last:
            break
        line_bytes += len(last)
    return line, line_bytes


def read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields `items`, each when the next one is there: at the last one, whatever they came from is done and closed."""
    missing = object()
    current: Item | object = next(items, missing)
    while current is not missing:
        following: Item | object = next(items, missing)
        yield current  # type: ignore[misc]
        current = following


class LineCheck:
    """Watches a text pass for what only damage or another kind of file puts there, whatever chunks it comes in.

    Zero bytes at the end, or 4,096 of them anywhere, are what a download leaves whose room was taken before it was cut,
    and may hide any number of lines. A carriage return without a line feed ended lines long ago: taken for a letter, it
    makes one line of many. At the very end of the text it is none.
    """

    def __init__(self, uri: str, *, returns_ok: bool = False) -> None:
        self._uri = uri
        self._returns_ok = returns_ok
        self._position = self._num_lines = self._num_zeros = 0
        self._ends_in_return = False

    def add(self, chunk: bytes) -> None:
        """Takes in what comes next; raises `DamagedError` for a hole, `RefusedError` for a bare carriage return."""
        if self._ends_in_return and chunk and not chunk.startswith(b"\n"):
            self._refuse_return(self._position - 1, self._num_lines + 1)
        if b"\r" in chunk and not self._returns_ok:
            self._ends_in_return = chunk.endswith(b"\r")
            if chunk.count(b"\r") > chunk.count(b"\r\n") + self._ends_in_return:
                at = next(at for at, byte in enumerate(chunk) if byte == 13 and chunk[at + 1 : at + 2] != b"\n")
                self._refuse_return(self._position + at, self._num_lines + 1 + chunk.count(b"\n", 0, at))
        elif chunk:
            self._ends_in_return = False
        if b"\0" in chunk:
            leading = len(chunk) - len(chunk.lstrip(b"\0"))
            at = -self._num_zeros if self._num_zeros + leading >= len(_HOLE) else chunk.find(_HOLE)
            if self._num_zeros + leading >= len(_HOLE) or at >= 0:
                self._refuse_zeros(self._position + at, chunk.count(b"\n", 0, max(at, 0)))
            num_zeros = len(chunk) - len(chunk.rstrip(b"\0"))
            self._num_zeros = num_zeros + (self._num_zeros if num_zeros == len(chunk) else 0)
        elif chunk:
            self._num_zeros = 0
        self._position += len(chunk)
        self._num_lines += chunk.count(b"\n")

    def finish(self) -> None:
        """Raises `DamagedError` when the text ends in zero bytes."""
        if self._num_zeros:
            self._refuse_zeros(self._position - self._num_zeros, 0)

    def _refuse_return(self, at: int, line: int) -> None:
        raise RefusedError(
            f"{self._uri}: a carriage return without a line feed in line {line:,} (offset {at:,}): if carriage returns "
            "end its lines, convert it with tr '\\r' '\\n', else take it out"
        )

    def _refuse_zeros(self, at: int, lines_before: int) -> None:
        raise DamagedError(
            f"{self._uri}: zero bytes stand in place of text from line {self._num_lines + lines_before + 1:,} (offset "
            f"{at:,}) on: a part of it is missing; fetch it again, or cut the zeros off"
        )


def refuse_nothing(uri: str, size_bytes: int) -> None:
    """Raises `DamagedError` for a file of 0 bytes: nobody can tell it from one that was cut."""
    if size_bytes == 0:
        raise DamagedError(f"{uri} is empty (0 bytes): fetch it again, or leave it out")
