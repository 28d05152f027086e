"""The state of a file tells it from the one that replaces it: files are replaced as a whole, never written into."""

import os
from pathlib import Path
from typing import NamedTuple

from cache_schema.reading import failures_told_from_absence


class FileState(NamedTuple):
    """Equal for as long as a file stays the same."""

    inode: int
    size_bytes: int
    mtime_ns: int


def state_of_file(path: Path) -> FileState | None:
    """Returns the state of the file at `path`, None where it is gone; raises `EnvironmentProblem` as `cannot_read`."""
    with failures_told_from_absence(path):
        status = os.stat(path)
        return FileState(status.st_ino, status.st_size, status.st_mtime_ns)
    return None
