"""Lines of the form KEY, tab, VALUE, found without holding a whole value in memory: the TSV files of DIME-FM.

**Source:** `TSVFile` of the official DIME-FM code (Training/datasets/tsv_file.py): columns are cut at tabs and
stripped; `NAME.lineidx` beside `NAME.tsv` holds the byte offset of every line.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from cache_schema.errors import DamagedError
from stages.files.lines import SIGNATURE, LineCheck
from stages.files.opened import SourceFile, is_remote

_CHUNK_BYTES = 4 << 20
_MAX_KEY_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class KeyedLine:
    """One line: where it starts, its key, and where its second column is; `value_bytes` is -1 when it has none."""

    offset_bytes: int
    key: str
    value_offset: int
    value_bytes: int


def keyed_lines(
    uri: str, file: SourceFile, *, offset_bytes: int = 0, chunk_bytes: int = 0, check: LineCheck | None = None
) -> Iterator[KeyedLine]:
    """Yields every line from `offset_bytes` on, where one must start, reading 4 MiB or `chunk_bytes` at a time.

    A byte order mark at the start of the file is no part of the first key. `check` sees all that is read.

    Raises:
        DamagedError: a line has no key, or one of more than 64 KiB, or the last line has no end: the file is cut.
    """
    # Only who reads from the beginning knows the number of a line.
    number = int(offset_bytes == 0)
    line = _LineSoFar(offset_bytes, number)
    position = offset_bytes
    while chunk := file.read_at(position, chunk_bytes or _CHUNK_BYTES):
        at = 0
        if check is not None:
            check.add(chunk)
        while at < len(chunk):
            end = chunk.find(b"\n", at)
            line.add(chunk, at, end if end >= 0 else len(chunk), position)
            if end < 0:
                if line.key is None and len(line.head) > _MAX_KEY_BYTES:
                    raise DamagedError(f"{uri}: no tab in {_MAX_KEY_BYTES:,} bytes of {_place(line)}: {_FORM}")
                break
            yield line.finished(uri, position + end)
            number += bool(number)
            line = _LineSoFar(position + end + 1, number)
            at = end + 1
        position += len(chunk)
    if line.offset_bytes < position:
        raise DamagedError(
            f"{uri} ends inside {_place(line)}, at {position:,} bytes: it is cut; fetch it again, or, if it is whole, "
            "end its last line with a line feed"
        )


def require_line_index(uri: str, last_line_offset: int) -> None:
    """Raises `DamagedError` when the `.lineidx` beside a TSV file, if there is one, ends with another line."""
    path = os.path.splitext(uri)[0] + ".lineidx"
    if is_remote(uri) or not os.path.isfile(path):
        return
    with open(path, "rb") as index:
        index.seek(max(0, os.path.getsize(path) - 64))
        words = index.read().split()
    if not words or not words[-1].isdigit() or int(words[-1]) != last_line_offset:
        stated = words[-1].decode("ascii", "replace") if words else "nothing"
        raise DamagedError(
            f"the last line of {uri} starts at byte {last_line_offset}, {path} says {stated[:20]}: one of the two is "
            "cut or older than the other; fetch both again, or remove the .lineidx"
        )


_FORM = "a line is KEY, a tab and VALUE; fetch the file again, or name its kind"


class _LineSoFar:
    """A line whose end may lie in a later chunk, as far as it was read."""

    def __init__(self, offset_bytes: int, number: int) -> None:
        self.offset_bytes = offset_bytes
        self.number = number
        self.head = b""
        self.key: str | None = None
        self._value_offset = 0
        self._value_end = -1

    def add(self, chunk: bytes, first: int, end: int, position: int) -> None:
        """Takes in `chunk[first:end]`, which lies at `position + first` in the file."""
        if self.key is None:
            tab = chunk.find(b"\t", first, end)
            self.head += chunk[first : tab if tab >= 0 else min(end, first + _MAX_KEY_BYTES + 1)]
            if tab < 0:
                return
            self.key = self._key_so_far()
            self._value_offset = position + tab + 1
            first = tab + 1
        if self._value_end < 0:
            second = chunk.find(b"\t", first, end)
            if second >= 0:
                self._value_end = position + second

    def _key_so_far(self) -> str:
        return _text(self.head if self.offset_bytes else self.head.removeprefix(SIGNATURE))

    def finished(self, uri: str, end: int) -> KeyedLine:
        key = self.key if self.key is not None else self._key_so_far()
        if not key:
            raise DamagedError(f"{uri}: {_place(self)} has no key: {_FORM}")
        if self.key is None:
            return KeyedLine(self.offset_bytes, key, end, -1)
        value_end = self._value_end if self._value_end >= 0 else end
        return KeyedLine(self.offset_bytes, key, self._value_offset, value_end - self._value_offset)


def _text(raw: bytes) -> str:
    # Keys are bytes; this keeps every one of them different and printable.
    return raw.strip().decode("utf-8", "backslashreplace")


def _place(line: _LineSoFar) -> str:
    return (
        f"line {line.number:,} (byte {line.offset_bytes:,})" if line.number else f"a line at byte {line.offset_bytes:,}"
    )
