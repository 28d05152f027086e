"""Image files that a folder holds or that a column of paths names; nothing outside the given root is ever opened."""

import errno
import os
import time
from dataclasses import dataclass
from urllib.parse import unquote

from cache_schema.errors import EnvironmentProblem, MismatchError, UsageError
from stages.files.opened import NotRegular, is_remote, open_regular, planned_file
from stages.files.remote import check_address
from stages.images.formats import is_misnamed
from stages.sources.base import MAX_PAYLOAD_BYTES, SeenFile

_OF_THE_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
"""What a path itself can be to blame for. Anything else (a mount that is lost, a disk that fails, too many open files)
says nothing of the file."""


class FileChanged(Exception):
    """A file has another size than when it was listed, or changed while it was read."""


@dataclass(frozen=True)
class ImageFile:
    """The image file at a path: `payload` is None exactly when `status` is not `ok`; `seen` of local ones."""

    payload: bytes | None
    size_bytes: int
    status: str = "ok"
    reason: str = ""
    seen: SeenFile | None = None


def root_of(uri: str, options: dict[str, str]) -> str:
    """Returns the folder below which the paths in table `uri` lie: its option `root`, else the table's own folder.

    A relative root is resolved now.
    """
    if "root" not in options:
        return os.path.dirname(uri)
    root = options["root"]
    return root.rstrip("/") if is_remote(root) else os.path.abspath(root)


def require_root(root: str) -> None:
    """Raises `UsageError` when `root` is no folder, or an address that is never read."""
    if is_remote(root):
        check_address(root)
    elif not os.path.isdir(root):
        raise UsageError(f"root {root} is not a folder: name the one that the paths in the table start from")


def planned_now() -> dict[str, int]:
    """Returns the state of a table of paths: a file behind it that changes from now on is not what was planned."""
    return {"newest_ns": time.time_ns()}


def read_image_file(root: str, path: str) -> ImageFile:
    """Returns the image file at `path`, relative to `root` or absolute and below it.

    A path that leads out of the root (`..`, a link, an absolute one), and anything but a regular file, is
    `src-unreadable` and not opened.

    Raises:
        EnvironmentProblem: the network, the disk or the mount fails.
    """
    inside = path.removeprefix(root.rstrip("/") + "/")
    if not inside or "\x00" in path:
        return _unreadable("not a path")
    if inside.startswith("/") or ".." in unquote(inside).split("/"):
        return _unreadable("leads out of the root")
    return _read_remote(f"{root}/{inside}", inside) if is_remote(root) else _read_local(root, inside)


def read_regular(path: str, size_bytes: int) -> tuple[bytes, SeenFile]:
    """Returns the bytes of a regular file, and what was seen of it.

    Raises:
        FileChanged: it has another size, or changed while it was read.
        OSError: as `open_regular`.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        before = os.fstat(file.fileno())
        if before.st_size != size_bytes:
            raise FileChanged("another size than when listed")
        # One byte more than listed, so that a file that grows meanwhile is seen.
        payload = file.read(size_bytes + 1)
        after = os.fstat(file.fileno())
    if len(payload) != size_bytes or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FileChanged("while it was read")
    return payload, SeenFile(path, after.st_mtime_ns)


def word_of(path: str, error: OSError) -> str:
    """Returns why a file cannot be read, in fixed words.

    Raises:
        EnvironmentProblem: the file is not to blame.
    """
    if isinstance(error, NotRegular):
        return "not a regular file"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "gone"
    if isinstance(error, PermissionError):
        return "no permission"
    if error.errno in _OF_THE_PATH:
        return "cannot be read"
    raise EnvironmentProblem(
        f"{path} cannot be read ({error.strerror}): mend the disk, the mount or the limit on open files, then run again"
    ) from error


def _read_local(root: str, inside: str) -> ImageFile:
    try:
        real_root = os.path.realpath(root)
        path = os.path.realpath(os.path.join(real_root, inside))
        if os.path.commonpath([path, real_root]) != real_root:
            return _unreadable("leads out of the root")
        size_bytes = os.stat(path).st_size
        if size_bytes > MAX_PAYLOAD_BYTES:
            return _too_large(size_bytes)
        payload, seen = read_regular(path, size_bytes)
    except FileChanged as error:
        return ImageFile(None, 0, "src-changed", str(error))
    except OSError as error:
        where = os.path.join(root, inside)
        return _unreadable(word_of(where, error), SeenFile(where))
    except ValueError:
        return _unreadable("not a path")
    return ImageFile(payload, size_bytes, "ok", "misnamed" if is_misnamed(inside, payload) else "", seen)


def _read_remote(address: str, inside: str) -> ImageFile:
    if set(inside) & set("?#"):
        return _unreadable("not a path")
    try:
        with planned_file(address) as file:
            if file.size_bytes > MAX_PAYLOAD_BYTES:
                return _too_large(file.size_bytes)
            payload = file.read_at(0, file.size_bytes)
    except MismatchError:
        return _unreadable("gone")
    except UsageError:
        return _unreadable("not a regular file")
    return ImageFile(payload, len(payload), "ok", "misnamed" if is_misnamed(inside, payload) else "")


def _too_large(size_bytes: int) -> ImageFile:
    return ImageFile(None, size_bytes, "img-too-many-bytes", f"over {MAX_PAYLOAD_BYTES} bytes")


def _unreadable(reason: str, seen: SeenFile | None = None) -> ImageFile:
    return ImageFile(None, 0, "src-unreadable", reason, seen)
