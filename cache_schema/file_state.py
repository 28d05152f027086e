"""The state of a file tells it from the one that replaces it: files are replaced as a whole, never written into."""

import os
from pathlib import Path
from typing import NamedTuple


class FileState(NamedTuple):
    """Equal for as long as a file stays the same."""

    inode: int
    size_bytes: int
    mtime_ns: int


def state_of_file(path: Path) -> FileState | None:
    """Returns the state of the file at `path`, None where it is gone or may not be asked."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return FileState(status.st_ino, status.st_size, status.st_mtime_ns)
