"""Files opened for reading: what is not there is told from what this machine cannot open now.

The first is damage where a file was committed. The second (too many open files, no memory, a disk or mount that fails)
is gone when the machine is well again, and must never be taken for damage: damage is repaired, by extracting again.
"""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_schema.errors import EnvironmentProblem

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_REMEDIES = {
    errno.ENFILE: "close other programs, or raise fs.file-max, and run again",
    errno.ENOMEM: "free memory, or raise vm.max_map_count, and run again",
    errno.EACCES: "get permission to read it and run again",
    errno.EPERM: "get permission to read it and run again",
}


def read_file(path: Path) -> bytes | None:
    """Returns the bytes of the file at `path`, None where there is none; raises `EnvironmentProblem` as `cannot_read`.

    A folder or a link to nothing is no file.
    """
    with failures_told_from_absence(path):
        return path.read_bytes()
    return None


@contextmanager
def failures_told_from_absence(path: Path) -> Iterator[None]:
    """Leaves its block where there is no file at `path`, and raises `cannot_read` for every other `OSError` in it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _MISSING:
            raise cannot_read(path, error) from error


def cannot_read(path: Path, error: OSError) -> EnvironmentProblem:
    """Returns the error for a file at `path` that is there and cannot be opened or read, with the way out."""
    remedy = _REMEDIES.get(error.errno or 0, "check the disk or the mount and run again")
    if error.errno == errno.EMFILE:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        remedy = f"this process may have {limit:,} open files: raise `ulimit -n` and run again"
    return EnvironmentProblem(f"cannot read {path}: {error.strerror or error}: {remedy}")
