"""Opening source files with care: never anything but a regular file, and every failure in three parts."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from cache_schema.errors import EnvironmentProblem, MismatchError, RefusedError, UsageError

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP)


class NotRegular(OSError):
    """The path is a directory, pipe, device or socket, and was not opened."""


def open_regular(path: str) -> int:
    """Returns a read-only descriptor of a regular file (links are followed).

    Raises:
        NotRegular: the path is anything else; opening a pipe or a device could block or have effects.
        OSError: as `os.open`.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotRegular(errno.EINVAL, "not a regular file", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(errno.EINVAL, "not a regular file", path)
    return descriptor


@contextlib.contextmanager
def planned_file(path: str) -> Iterator[int]:
    """Opens a source file that a plan names and gives its descriptor.

    Raises:
        UsageError: it is not a regular file.
        RefusedError: it is gone or may not be read.
        EnvironmentProblem: the disk or the machine fails.
    """
    try:
        descriptor = open_regular(path)
    except NotRegular as error:
        raise UsageError(f"{path} is not a regular file: point at a file or a folder") from error
    except OSError as error:
        raise _in_words(path, error) from error
    try:
        yield descriptor
    except OSError as error:
        raise _in_words(path, error) from error
    finally:
        os.close(descriptor)


def read_range(path: str, descriptor: int, offset_bytes: int, size_bytes: int) -> bytes:
    """Returns exactly `size_bytes` bytes at `offset_bytes`; raises `RefusedError` when the file ends before."""
    # Asked first, so that a wrong size is an error and not an allocation.
    file_bytes = os.fstat(descriptor).st_size
    data = b""
    while offset_bytes + size_bytes <= file_bytes and len(data) < size_bytes:
        more = os.pread(descriptor, size_bytes - len(data), offset_bytes + len(data))
        if not more:
            break
        data = data + more if data else more
    if len(data) < size_bytes:
        raise MismatchError(
            f"{path} ends at {file_bytes:,} bytes, before the {size_bytes:,} bytes expected at "
            f"offset {offset_bytes:,}: it changed since it was planned; restore it"
        )
    return data


def _in_words(path: str, error: OSError) -> RefusedError | EnvironmentProblem:
    if error.errno in _GONE:
        return MismatchError(f"{path} cannot be read any more ({error.strerror}): restore it, then run again")
    return EnvironmentProblem(f"{path} cannot be read ({error.strerror}): mend the disk or the mount, then run again")
