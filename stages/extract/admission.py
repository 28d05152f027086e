"""Admits a worker to an extract: it must see the very folder that is written, and have the same packages."""

import os
import socket
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cache_schema.atomic import Fence, lock_lost
from cache_schema.cache import FORMAT
from cache_schema.errors import EnvironmentProblem, LockedError, MismatchError
from cache_schema.layout import Layout

# Packages whose release can change a feature.
PACKAGES = (
    "vlm-distill", "torch", "torchvision", "open_clip_torch", "timm", "transformers", "tokenizers", "pillow", "numpy"
)  # fmt: skip
# A network file system may show a folder as it was up to so long ago.
SECONDS_TO_SEE_THE_LOCK = 40.0
SECONDS_BETWEEN_LOOKS = 0.5


def package_versions() -> dict[str, str]:
    """Returns the version of each of `PACKAGES`, "absent" where it is not installed, and the cache format."""
    found = {"cache format": str(FORMAT)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def check_admission(fence: Fence, versions: Mapping[str, str]) -> None:
    """Returns when this process may work on the cache of `fence`: it sees the lock, and has the same `versions`.

    Raises:
        EnvironmentProblem: the folder is not there, is not writable, or is another one than the run writes.
        MismatchError: a package has another version than where the run was started.
        LockedError: the lock is another run's by now, or this cache has none any more.
    """
    here = socket.gethostname()
    cache = fence.lock_path.parent
    different = [
        f"{name} {mine} there, {versions.get(name)} where the run was started"
        for name, mine in package_versions().items()
        if versions.get(name) != mine
    ]
    if different:
        raise MismatchError(
            f"node {here} has other packages ({'; '.join(different)}): install the same environment on all nodes"
        )
    if not cache.is_dir():
        raise EnvironmentProblem(
            f"cache folder {cache} is not visible on node {here}: mount the file system that holds it there, at the "
            "same path"
        )
    _require_lock(cache, fence, here)
    if not os.access(cache, os.W_OK):
        raise EnvironmentProblem(
            f"cache folder {cache} cannot be written on node {here}: mount it writable for user {os.geteuid()}"
        )


def _require_lock(cache: Path, fence: Fence, here: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_SEE_THE_LOCK
    while True:
        try:
            return fence.check()
        except LockedError:
            if fence.lock_path.exists():
                raise
        if time.monotonic() > deadline:
            # A run makes its cache before it makes workers: where a cache is, its lock was.
            if Layout(cache).cache_json.exists():
                raise lock_lost(fence.lock_path)
            raise EnvironmentProblem(
                f"cache folder {cache} on node {here} is not the one that this run writes, for the lock of the run is "
                "not in it: mount the same file system at the same path on all nodes"
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)
