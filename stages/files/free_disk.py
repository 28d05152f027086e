"""The free bytes of a file system."""

import shutil
from pathlib import Path


def free_bytes(cache: Path) -> int:
    """Returns the free bytes of the file system that the cache is on, or will be on, for this user."""
    path = cache.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
