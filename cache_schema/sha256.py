"""SHA-256 as the cache writes it: 64 hexadecimal digits."""

import hashlib
from pathlib import Path

from cache_schema.reading import failures_told_from_absence


def sha256_of(data: bytes | memoryview) -> str:
    """Returns the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str | None:
    """Returns the SHA-256 of the file at `path`, None where there is none; raises as `read_file`."""
    with failures_told_from_absence(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return None
