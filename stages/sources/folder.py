"""A folder of image files, its subfolders included, in the order of their names."""

import hashlib
import os
import stat
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import numpy as np

from cache_schema.errors import MismatchError, RefusedError, UsageError
from cache_schema.layout import Modality
from stages.files.keys import hash_of_key
from stages.images.formats import IMAGE_EXTENSIONS, is_misnamed
from stages.sources.base import MAX_PAYLOAD_BYTES, RawSample, ScannedSource, SeenFile
from stages.sources.image_files import FileChanged, read_regular, word_of

_NO_SIZE = -1


class FolderSource:
    """Every file with an image extension below a folder; the key is its path inside the folder, with `/`.

    Hidden files and folders (a leading dot) are left out. What has an image extension but is not a regular file, or
    may not be read, keeps its row as `src-unreadable` and is never opened. The listing is kept after first use, so
    open a folder once per process; files that vanish afterwards are `src-unreadable`, resized ones `src-changed`.
    Links to folders are not followed.
    """

    kind: ClassVar[str] = "folder"
    modalities: ClassVar[tuple[Modality, ...]] = ("image",)
    extensions: ClassVar[tuple[str, ...]] = ()
    option_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options
        self._listing: _Listing | None = None

    def scan(self) -> ScannedSource:
        """Lists names and sizes; raises `UsageError` when there is no image."""
        listing = self._listing = self._list()
        names = listing.names
        if not names:
            raise UsageError(f"no images in {self.uri}{self._hint(listing.ignored)}")
        # Where a sample starts is its place in the listing; there is no byte offset.
        offsets = np.zeros(len(names), dtype=np.int64)
        key_hashes = np.fromiter((hash_of_key(name) for name in names), dtype=np.uint64, count=len(names))
        ignored = dict(listing.ignored)
        return ScannedSource(listing.digest(), len(names), offsets, key_hashes, ignored, listing.state())

    def require_planned(self, fingerprint: str, state: Mapping[str, int]) -> None:
        """Raises `MismatchError` unless the folder holds the files that were planned, under the same names.

        A file that changed is its own row's matter: it is newer than all that were planned.
        """
        listing = self._listing = self._listing or self._list()
        now = listing.state()
        if listing.digest() == fingerprint or now["listing"] == state.get("listing"):
            return
        if now["names"] != state.get("names") or now["newest_ns"] <= state["newest_ns"]:
            raise MismatchError(
                f"{self.uri} changed since it was planned (files added, removed, renamed or resized): restore it, or "
                "take it as it is now with --accept-new"
            )

    def read(self, first_sample: int, num_samples: int, offset_bytes: int = 0) -> Iterator[RawSample]:
        """Yields the files in the order of their names; raises `MismatchError` when there are too few."""
        listing = self._listing = self._listing or self._list()
        names, sizes = listing.names, listing.sizes
        if first_sample + num_samples > len(names):
            raise MismatchError(
                f"{self.uri} holds {len(names):,} images, the plan needs {first_sample + num_samples:,}: "
                "restore the files that were removed"
            )
        for name, size in islice(zip(names, sizes, strict=True), first_sample, first_sample + num_samples):
            yield self._sample(name, size)

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns the bytes of one file; raises `RefusedError` when it is gone or has another size."""
        path = self._path_of(key)
        try:
            return read_regular(path, size_bytes)[0]
        except OSError as error:
            raise MismatchError(
                f"{key!r} in {self.uri} cannot be read any more ({word_of(path, error)}): restore it"
            ) from error
        except FileChanged as error:
            raise MismatchError(f"{key!r} in {self.uri} changed since it was planned: restore it") from error

    def _sample(self, key: str, size: int) -> RawSample:
        if size == _NO_SIZE:
            return RawSample(key, None, 0, 0, "src-unreadable", "not a readable file")
        if size > MAX_PAYLOAD_BYTES:
            return RawSample(key, None, 0, size, "img-too-many-bytes", f"over {MAX_PAYLOAD_BYTES} bytes")
        path = self._path_of(key)
        try:
            payload, seen = read_regular(path, size)
        except FileChanged as error:
            return RawSample(key, None, 0, size, "src-changed", str(error))
        except OSError as error:
            return RawSample(key, None, 0, size, "src-unreadable", word_of(path, error), SeenFile(path))
        return RawSample(key, payload, 0, size, "ok", "misnamed" if is_misnamed(key, payload) else "", seen)

    def _path_of(self, key: str) -> str:
        # Keys are UTF-8 whatever the locale makes of file names.
        path = os.path.join(self.uri, os.fsdecode(key.encode()))
        if ".." in key.split("/") or os.path.isabs(key):
            raise RefusedError(f"key {key!r} leads out of {self.uri}: the sample table is not of this folder")
        return path

    def _list(self) -> "_Listing":
        listing, now_ns = _Listing(), time.time_ns()
        for name, size, mtime_ns in self._walk("", listing.ignored):
            # A name that is not UTF-8 cannot be a key; it keeps its row under an escaped one.
            key = os.fsencode(name).decode("utf-8", "backslashreplace")
            listing.names.append(key)
            listing.sizes.append(size if key.encode() == os.fsencode(name) else _NO_SIZE)
            # A time that is still to come says nothing.
            listing.newest_ns = max(listing.newest_ns, mtime_ns if mtime_ns <= now_ns else 0)
        return listing

    def _walk(self, inside: str, ignored: Counter[str]) -> Iterator[tuple[str, int, int]]:
        """Yields (name, size, time) below the subfolder `inside`, sorted by name, folders among files."""
        try:
            with os.scandir(os.path.join(self.uri, inside)) as entries:
                shown = (entry for entry in entries if not entry.name.startswith("."))
                ordered = deque(sorted(shown, key=lambda entry: os.fsencode(entry.name)))
        except OSError as error:
            where = os.path.join(self.uri, inside)
            raise UsageError(
                f"folder {where} cannot be listed ({word_of(where, error)}): give access or leave it out"
            ) from error
        while ordered:
            # Taken out one by one: an entry keeps what `stat` told it, far more than its name.
            entry = ordered.popleft()
            base = entry.name
            name = f"{inside}/{base}" if inside else base
            extension = base.rpartition(".")[2].lower() if "." in base else ""
            # Links to folders are not followed: they may lead round in a circle.
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(name, ignored)
            elif extension in IMAGE_EXTENSIONS:
                yield name, *_size_and_time_of(entry)
            elif entry.is_dir():
                ignored["linked folders"] += 1
            else:
                ignored[f".{extension}" if extension else "no extension"] += 1

    def _hint(self, ignored: Counter[str]) -> str:
        if not ignored:
            return ": it is empty"
        if ".tar" in ignored:
            return f": it holds {ignored['.tar']} tars; point at them, as in '{self.uri}/*.tar'"
        found = ", ".join(f"{count} {name}" for name, count in sorted(ignored.items())[:8])
        return f" (found {found}): point at files such as .jpg, .png or .webp"


@dataclass
class _Listing:
    """The images of a folder as they are now."""

    names: list[str] = field(default_factory=list)
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    newest_ns: int = 0
    ignored: Counter[str] = field(default_factory=Counter)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.sizes, strict=True):
            digest.update(f"{len(name)} {name} {size}\n".encode())
        return digest.hexdigest()

    def state(self) -> dict[str, int]:
        names = hashlib.sha256()
        for name in self.names:
            names.update(f"{len(name)} {name}\n".encode())
        # 52 bits of each, which every JSON reader keeps.
        of_names, of_listing = (int(digest[:13], 16) for digest in (names.hexdigest(), self.digest()))
        return {"newest_ns": self.newest_ns, "names": of_names, "listing": of_listing}


def _size_and_time_of(entry: "os.DirEntry[str]") -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError as error:
        # What the file is not to blame for must not be taken for its size.
        word_of(entry.path, error)
        return _NO_SIZE, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (_NO_SIZE, 0)
