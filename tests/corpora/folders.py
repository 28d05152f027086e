"""What is in a folder: sizes, contents, and whether anybody touched it."""

import hashlib
from pathlib import Path


def size_of(folder: Path, pattern: str) -> int:
    """Returns the bytes of all files in `folder` that match."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def contents_of(folder: Path) -> dict[str, str]:
    """Returns name -> SHA-256 of every file, but locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def states_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Returns path -> (time of the last change, inode) of everything in it: equal states mean that nobody wrote."""
    found = {path: path.stat() for path in folder.rglob("*")}
    return {path: (status.st_mtime_ns, status.st_ino) for path, status in found.items()}
