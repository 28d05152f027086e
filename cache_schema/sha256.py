"""SHA-256 as the cache writes it: 64 hexadecimal digits."""

import hashlib
from pathlib import Path


def sha256_of(data: bytes | memoryview) -> str:
    """Returns the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str | None:
    """Returns the SHA-256 of the file at `path`, None where there is none; raises `OSError` when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
