"""Lines of a stream in bounded memory."""

from collections.abc import Iterator
from typing import BinaryIO, TypeVar

MAX_LINE_BYTES = 1 << 20
"""A longer line of text is set aside unread, as `text-too-long`."""

ENCODINGS = ("utf-8", "latin-1", "iso-8859-15", "cp1252")
"""All have the line feed as the byte 10, so that lines are found without decoding."""

SIGNATURE = b"\xef\xbb\xbf"
"""What some programs write at the start of a UTF-8 file; it belongs to the file and not to its text."""

_PIECE_BYTES = 1 << 20

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
