"""What is read at any place, as Python's own kind of stream."""

import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast


def stream_of(read_at: Callable[[int, int], bytes], size_bytes: int, offset_bytes: int) -> BinaryIO:
    """Returns a buffered stream that starts at `offset_bytes`, can seek, and has a position of its own.

    Args:
        read_at: returns up to so many bytes (second) from a place on (first); fewer only at the end.
        size_bytes: of the whole.
        offset_bytes: where it starts.
    """
    return cast(BinaryIO, io.BufferedReader(_Stream(read_at, size_bytes, offset_bytes), 1 << 20))


class _Stream(io.RawIOBase):
    def __init__(self, read_at: Callable[[int, int], bytes], size_bytes: int, offset_bytes: int) -> None:
        self._read_at = read_at
        self._size_bytes = size_bytes
        self._position = offset_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
