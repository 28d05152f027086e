"""The only place that writes files: a file at its final name is whole, or it is not there.

Every file is published the same way: written to a temporary name in the same folder, flushed, fsynced, renamed over the
final name, and the folder fsynced. After a crash at any instant a reader sees the old file or the new one. Temporary
files end in `.partial`; readers ignore them and whoever cleans up may delete them.
"""

import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cache_schema.errors import EnvironmentProblem, LockedError, PipelineError, UsageError
from cache_schema.json_file import Json, parse_json, readable_json

PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class Fence:
    """Proof of holding a lock file. A writer whose fence is out of date must not publish any more."""

    lock_path: Path
    token: str

    def check(self) -> None:
        """Raises `LockedError` when the lock file no longer carries this fence's token."""
        try:
            holder = parse_json(self.lock_path.read_bytes(), self.lock_path)
        except FileNotFoundError:
            holder = None
        if not isinstance(holder, dict) or holder.get("token") != self.token:
            raise lock_lost(self.lock_path)


def lock_lost(lock_path: Path) -> LockedError:
    """Returns the error for a process whose lock is no longer at `lock_path`, or is another one's by now."""
    now = "another process took over while it was silent" if lock_path.exists() else "it is gone: another one is done"
    return LockedError(
        f"the lock was lost: {lock_path} is no longer held by this process ({now}): "
        "nothing more is written here; run again once nobody else writes"
    )


def publish_bytes(path: Path, data: bytes | memoryview, *, fence: Fence | None = None) -> None:
    """Publishes `data` as the file `path`: after a crash the old content or the new is there, never a mixture.

    Raises:
        EnvironmentProblem: the system refused to write (no space, quota, read-only, I/O error); names path and bytes.
        LockedError: `fence` is out of date; nothing was published.
    """

    def write(partial: Path) -> None:
        with open(partial, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]

    publish_with(path, write, fence=fence, num_bytes=len(data))


def publish_json(path: Path, value: Json, *, fence: Fence | None = None) -> None:
    """Publishes `value` as indented JSON at `path`; errors as `publish_bytes`."""
    publish_bytes(path, readable_json(value), fence=fence)


def publish_with(
    path: Path, write: Callable[[Path], None], *, fence: Fence | None = None, num_bytes: int | None = None
) -> None:
    """Publishes the file that `write` fills at a temporary path of the same folder; errors as `publish_bytes`.

    For libraries that insist on writing to a path. `num_bytes` only makes a message more precise.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        write(partial)
        _fsync(partial)
        if fence is not None:
            fence.check()
        os.replace(partial, path)
        _fsync(path.parent)
    except OSError as error:
        raise _environment_problem(path, error, num_bytes) from error
    finally:
        _discard(partial)


def publish_stream(path: Path, write: Callable[[BinaryIO], None], *, fence: Fence | None = None) -> None:
    """Publishes the file whose bytes `write` writes one after the other; errors as `publish_bytes`."""

    def fill(partial: Path) -> None:
        with open(partial, "wb") as file:
            write(file)

    publish_with(path, fill, fence=fence)


def make_folder(path: Path) -> None:
    """Creates the folder `path` and its missing parents, durably; an existing folder is fine.

    Raises:
        EnvironmentProblem: the system refused, or a file stands in the way.
    """
    with failures_named(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            _fsync(folder.parent)


def write_unsynced(path: Path, value: Json) -> None:
    """Writes `value` as JSON over the file `path`, cheaply: after a power cut it may be missing or torn.

    Raises:
        EnvironmentProblem: the system refused to write.
    """
    with failures_named(path):
        path.write_bytes(readable_json(value))


def append_line(path: Path, line: str) -> None:
    """Appends `line` and a newline to a log at `path`. Not durable: logs are cut back to a checkpoint on resume.

    Raises:
        EnvironmentProblem: the system refused to write.
    """
    try:
        with open(path, "ab") as file:
            file.write(line.encode() + b"\n")
    except OSError as error:
        raise _environment_problem(path, error, len(line) + 1) from error


def keep_lines(path: Path, num_lines: int) -> None:
    """Cuts the log at `path` back to its first `num_lines` whole lines; a missing log stays missing."""
    if path.exists():
        lines = path.read_bytes().split(b"\n")[:-1]
        publish_bytes(path, b"".join(line + b"\n" for line in lines[:num_lines]))


def remove_file(path: Path) -> None:
    """Removes the file `path`, durably; a missing file is fine."""
    with failures_named(path):
        path.unlink(missing_ok=True)
        _fsync(path.parent)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds the empty file `path`, made when missing, so that one process of this file system is inside at a time.

    Raises:
        EnvironmentProblem: the system refused.
    """
    with failures_named(path):
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        with failures_named(path):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with failures_named(path):
            os.close(descriptor)


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turns every `OSError` inside into the `EnvironmentProblem` that names `path` and the way out."""
    try:
        yield
    except OSError as error:
        raise _environment_problem(path, error, None) from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(partial: Path) -> None:
    # Also reached on KeyboardInterrupt. After a successful rename there is nothing left under this name.
    try:
        os.unlink(partial)
    except FileNotFoundError:
        return
    except OSError:
        # On a dying disk the stump may be unremovable; its suffix already says that nobody reads it.
        return


_REMEDIES = {
    errno.ENOSPC: "free space on that disk and run again to resume",
    errno.EDQUOT: "free some of your quota and run again to resume",
    errno.EROFS: "the file system is read-only: mount it writable or choose another folder, then run again",
    errno.EACCES: "get write permission there or choose another folder, then run again",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another folder",
    errno.EEXIST: "a file stands where a folder is needed: choose another folder",
}


def _environment_problem(path: Path, error: OSError, num_bytes: int | None) -> PipelineError:
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(f"cannot write {str(path)[:60]}... ({len(str(path)):,} characters): name a shorter path")
    amount = f" ({num_bytes:,} bytes)" if num_bytes is not None else ""
    remedy = _REMEDIES.get(error.errno or 0, "check the disk and run again to resume")
    return EnvironmentProblem(f"cannot write {path}{amount}: {error.strerror or error}: {remedy}")
