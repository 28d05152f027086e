"""Memory for pixels that this process shares with its decode processes, in slabs that are used again.

A decoder writes pixels where they are read later, so that nothing is copied on the way. A slab belongs to whoever keeps
its pixels, or a view of them, and is handed out again once nobody does: so the memory is that of the pixels which are
alive at once, and no pixel changes while somebody looks at it.
"""

import mmap
import os
import sys
import tempfile
import threading
import weakref
from collections import deque
from math import prod
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Slab(NamedTuple):
    """Room for the pixels of so many pictures, and the place of its memory in the shared file."""

    pixels: NDArray[np.uint8]
    offset_bytes: int
    size_bytes: int


class _Piece(NamedTuple):
    offset_bytes: int
    memory: mmap.mmap


class SharedPixels:
    """Pixels of `shape` a picture, in memory that other processes map by its `descriptor`. Safe with several threads.

    Args:
        shape: of the largest pixels of one picture.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._file = _nameless_file()
        self._size_bytes = 0
        self._free: list[_Piece] = []
        # Filled by finalizers, which may run at any time, also while the lock is held.
        self._returned: deque[_Piece] = deque()
        self._lock = threading.Lock()

    @property
    def descriptor(self) -> int:
        """Returns the descriptor of the shared file, which stays ours."""
        return self._file.fileno()

    def lease(self, num_rows: int) -> Slab:
        """Returns room for `num_rows` pictures, with pixels of no meaning; it is free again when they are forgotten."""
        size_bytes = _in_whole_pages(num_rows * prod(self._shape))
        with self._lock:
            while self._returned:
                self._free.append(self._returned.popleft())
            fitting = [piece for piece in self._free if len(piece.memory) >= size_bytes]
            piece = min(fitting, key=lambda piece: len(piece.memory)) if fitting else self._grown(size_bytes)
            if fitting:
                self._free.remove(piece)
        pixels: NDArray[np.uint8] = np.ndarray((num_rows, *self._shape), np.uint8, buffer=piece.memory)
        weakref.finalize(pixels, self._returned.append, piece).atexit = False
        return Slab(pixels, piece.offset_bytes, len(piece.memory))

    def close(self) -> None:
        """Closes the file; pixels that somebody keeps stay."""
        self._file.close()

    def _grown(self, size_bytes: int) -> _Piece:
        start = self._size_bytes
        os.ftruncate(self._file.fileno(), start + size_bytes)
        self._size_bytes += size_bytes
        return _Piece(start, mmap.mmap(self._file.fileno(), size_bytes, offset=start))


class MappedSlabs:
    """The slabs of another process, each mapped when it is first named.

    Args:
        descriptor: of the shared file.
        shape: of the largest pixels of one picture.
    """

    def __init__(self, descriptor: int, shape: tuple[int, ...]) -> None:
        self._descriptor = descriptor
        self._shape = shape
        self._slabs: dict[int, NDArray[np.uint8]] = {}

    def slab(self, offset_bytes: int, size_bytes: int) -> NDArray[np.uint8]:
        """Returns the pixels of the slab at that place: as many pictures as fit."""
        if offset_bytes not in self._slabs:
            memory = mmap.mmap(self._descriptor, size_bytes, offset=offset_bytes)
            num_rows = size_bytes // max(1, prod(self._shape))
            self._slabs[offset_bytes] = np.ndarray((num_rows, *self._shape), np.uint8, buffer=memory)
        return self._slabs[offset_bytes]


def _in_whole_pages(size_bytes: int) -> int:
    return max(1, -(-size_bytes // mmap.ALLOCATIONGRANULARITY)) * mmap.ALLOCATIONGRANULARITY


def _nameless_file() -> IO[bytes]:
    """Returns a file that goes with its last user; in memory on Linux, whatever size the shared-memory mount has."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("decode"), "r+b")
    return tempfile.TemporaryFile()
