"""Remembers what was parsed from small files for as long as they stay the same files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cache_schema.file_state import FileState, state_of_file

Parsed = TypeVar("Parsed")


class ReadOnce:
    """Parsed plans and records of one cache. What is parsed must be immutable: every caller gets the same object."""

    def __init__(self) -> None:
        self._parsed: dict[Path, tuple[FileState, Any]] = {}

    def get(self, path: Path, parse: Callable[[Path], Parsed]) -> Parsed:
        """Returns `parse(path)`, or what it returned before if `path` is still the same file; raises what it raises."""
        state = state_of_file(path)
        known = self._parsed.get(path)
        if known is not None and known[0] == state:
            parsed: Parsed = known[1]
            return parsed
        parsed = parse(path)
        # Whoever parses a file that is gone says what is wrong.
        if state is not None:
            self._parsed[path] = (state, parsed)
        return parsed
