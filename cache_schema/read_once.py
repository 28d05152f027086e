"""Remembers what was parsed from small files for as long as they stay the same files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Parsed = TypeVar("Parsed")

FileState = tuple[int, int, int]
"""Inode, size and modification time: published files are replaced as a whole, so these tell one from the next."""


class ReadOnce:
    """Parsed plans and records of one cache. What is parsed must be immutable: every caller gets the same object."""

    def __init__(self) -> None:
        self._parsed: dict[Path, tuple[FileState, Any]] = {}

    def get(self, path: Path, parse: Callable[[Path], Parsed]) -> Parsed:
        """Returns `parse(path)`, or what it returned before if `path` is still the same file; raises what it raises."""
        state = _state_of(path)
        known = self._parsed.get(path)
        if known is not None and known[0] == state:
            parsed: Parsed = known[1]
            return parsed
        parsed = parse(path)
        if state is not None:
            self._parsed[path] = (state, parsed)
        return parsed


def _state_of(path: Path) -> FileState | None:
    try:
        status = os.stat(path)
    except OSError:
        # Whoever parses it says what is wrong.
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
