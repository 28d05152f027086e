"""Opening source files with care: never anything but a regular file, and every failure in three parts.

A source sees a file through `SourceFile` alone, so that it need not know whether the bytes lie on this machine.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from cache_schema.errors import EnvironmentProblem, MismatchError, RefusedError, UsageError
from stages.files.streams import stream_of

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP)


class SourceFile(Protocol):
    """An open file of known size that is read at any place."""

    size_bytes: int

    def read_at(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns up to `size_bytes` bytes from `offset_bytes` on; fewer only at the end of the file."""
        ...

    def stream(self, offset_bytes: int = 0) -> BinaryIO:
        """Returns a buffered file object that starts at `offset_bytes` and can seek; close it after use."""
        ...


class LocalFile:
    """A regular file on this machine, by its descriptor, which stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size

    def read_at(self, offset_bytes: int, size_bytes: int) -> bytes:
        data = os.pread(self._descriptor, size_bytes, offset_bytes)
        while data and len(data) < size_bytes:
            more = os.pread(self._descriptor, size_bytes - len(data), offset_bytes + len(data))
            if not more:
                break
            data += more
        return data

    def stream(self, offset_bytes: int = 0) -> BinaryIO:
        return stream_of(self.read_at, self.size_bytes, offset_bytes)


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
def planned_file(uri: str) -> Iterator[SourceFile]:
    """Opens a file that a plan names.

    Raises:
        UsageError: it is not a regular file.
        RefusedError: it is gone or may not be read.
        EnvironmentProblem: the disk, the network or the machine fails.
    """
    if is_remote(uri):
        from stages.files.remote import remote_file

        with remote_file(uri) as file:
            yield file
        return
    try:
        descriptor = open_regular(uri)
    except NotRegular as error:
        raise UsageError(f"{uri} is not a regular file: point at a file or a folder") from error
    except OSError as error:
        raise _in_words(uri, error) from error
    try:
        yield LocalFile(descriptor)
    except OSError as error:
        raise _in_words(uri, error) from error
    finally:
        os.close(descriptor)


def is_remote(uri: str) -> bool:
    """Returns whether a planned source is read over the network: local ones are absolute paths."""
    return "://" in uri and not uri.startswith("/")


def state_of(uri: str) -> dict[str, int]:
    """Returns numbers that stay the same as long as a source that is one file does; {} where there are none."""
    if is_remote(uri):
        from stages.files.remote import remote_state

        return remote_state(uri)
    if not os.path.isfile(uri):
        return {}
    status = os.stat(uri)
    return {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def read_range(uri: str, file: SourceFile, offset_bytes: int, size_bytes: int) -> bytes:
    """Returns exactly `size_bytes` bytes at `offset_bytes`; raises `RefusedError` when the file ends before."""
    # Asked first, so that a wrong size is an error and not an allocation.
    data = file.read_at(offset_bytes, size_bytes) if offset_bytes + size_bytes <= file.size_bytes else b""
    if len(data) < size_bytes:
        raise MismatchError(
            f"{uri} ends at {file.size_bytes:,} bytes, before the {size_bytes:,} bytes expected at "
            f"offset {offset_bytes:,}: it changed since it was planned; restore it"
        )
    return data


def _in_words(path: str, error: OSError) -> RefusedError | EnvironmentProblem:
    if error.errno in _GONE:
        return MismatchError(f"{path} cannot be read any more ({error.strerror}): restore it, then run again")
    return EnvironmentProblem(f"{path} cannot be read ({error.strerror}): mend the disk or the mount, then run again")
