"""A folder of image files, its subfolders included, in the order of their names."""

import hashlib
import os
import stat
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar

import numpy as np

from cache_schema.errors import MismatchError, RefusedError, UsageError
from cache_schema.layout import Modality
from stages.files.keys import hash_of_key
from stages.images.formats import IMAGE_EXTENSIONS, is_misnamed
from stages.sources.base import MAX_PAYLOAD_BYTES, RawSample, ScannedSource
from stages.sources.image_files import SizeChanged, read_regular, word_of

_NO_SIZE = -1


class FolderSource:
    """Every file with an image extension below a folder; the key is its path inside the folder, with `/`.

    Hidden files and folders (a leading dot) are left out. What has an image extension but is not a regular file, or
    may not be read, keeps its row as `src-unreadable` and is never opened. The listing is kept after first use, so
    open a folder once per process; files that vanish afterwards are `src-unreadable`, resized ones `src-changed`.
    """

    kind: ClassVar[str] = "folder"
    modalities: ClassVar[tuple[Modality, ...]] = ("image",)
    extensions: ClassVar[tuple[str, ...]] = ()
    option_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, uri: str, modality: Modality, options: dict[str, str], *, fingerprint: str = "") -> None:
        self.uri = uri
        self.modality = modality
        self.options = options
        self._fingerprint = fingerprint
        self._listing: tuple[list[str], array[int]] | None = None

    def scan(self) -> ScannedSource:
        """Lists names and sizes; raises `UsageError` when there is no image."""
        ignored: Counter[str] = Counter()
        names, sizes = self._listing = self._list(ignored)
        if not names:
            raise UsageError(f"no images in {self.uri}{self._hint(ignored)}")
        # Where a sample starts is its place in the listing; there is no byte offset.
        offsets = np.zeros(len(names), dtype=np.int64)
        key_hashes = np.fromiter((hash_of_key(name) for name in names), dtype=np.uint64, count=len(names))
        return ScannedSource(_digest_of(names, sizes), len(names), offsets, key_hashes, dict(ignored))

    def read(self, first_sample: int, num_samples: int, offset_bytes: int = 0) -> Iterator[RawSample]:
        """Yields the files in the order of their names; raises `MismatchError` when the listing changed."""
        if self._listing is None:
            self._listing = self._list(Counter())
            if self._fingerprint and _digest_of(*self._listing) != self._fingerprint:
                self._listing = None
                raise MismatchError(
                    f"{self.uri} changed since it was planned (files added, removed, renamed or resized): "
                    "restore it, or extract into a new cache"
                )
        names, sizes = self._listing
        if first_sample + num_samples > len(names):
            raise MismatchError(
                f"{self.uri} holds {len(names):,} images, the plan needs {first_sample + num_samples:,}: "
                "restore the files that were removed"
            )
        for name, size in islice(zip(names, sizes, strict=True), first_sample, first_sample + num_samples):
            yield self._sample(name, size)

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns the bytes of one file; raises `RefusedError` when it is gone or has another size."""
        try:
            return read_regular(self._path_of(key), size_bytes)
        except OSError as error:
            raise MismatchError(
                f"{key!r} in {self.uri} cannot be read any more ({error.strerror}): restore it"
            ) from error
        except SizeChanged as error:
            raise MismatchError(f"{key!r} in {self.uri} changed since it was planned: restore it") from error

    def _sample(self, key: str, size: int) -> RawSample:
        if size == _NO_SIZE:
            return RawSample(key, None, 0, 0, "src-unreadable", "not a readable file")
        if size > MAX_PAYLOAD_BYTES:
            return RawSample(key, None, 0, size, "img-too-many-bytes", f"over {MAX_PAYLOAD_BYTES} bytes")
        try:
            payload = read_regular(self._path_of(key), size)
        except SizeChanged:
            return RawSample(key, None, 0, size, "src-changed", "another size than when listed")
        except OSError as error:
            return RawSample(key, None, 0, size, "src-unreadable", word_of(error))
        return RawSample(key, payload, 0, size, "ok", "misnamed" if is_misnamed(key, payload) else "")

    def _path_of(self, key: str) -> str:
        # Keys are UTF-8 whatever the locale makes of file names.
        path = os.path.join(self.uri, os.fsdecode(key.encode()))
        if ".." in key.split("/") or os.path.isabs(key):
            raise RefusedError(f"key {key!r} leads out of {self.uri}: the sample table is not of this folder")
        return path

    def _list(self, ignored: Counter[str]) -> tuple[list[str], "array[int]"]:
        names: list[str] = []
        sizes = array("q")
        for name, size in self._walk("", ignored):
            # A name that is not UTF-8 cannot be a key; it keeps its row under an escaped one.
            key = os.fsencode(name).decode("utf-8", "backslashreplace")
            names.append(key)
            sizes.append(size if key.encode() == os.fsencode(name) else _NO_SIZE)
        return names, sizes

    def _walk(self, inside: str, ignored: Counter[str]) -> Iterator[tuple[str, int]]:
        """Yields (name, size) below the subfolder `inside`, sorted by name, folders among files."""
        try:
            with os.scandir(os.path.join(self.uri, inside)) as entries:
                shown = (entry for entry in entries if not entry.name.startswith("."))
                ordered = deque(sorted(shown, key=lambda entry: os.fsencode(entry.name)))
        except OSError as error:
            where = os.path.join(self.uri, inside)
            raise UsageError(
                f"folder {where} cannot be listed ({error.strerror}): give access or leave it out"
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
                yield name, _size_of(entry)
            else:
                ignored[f".{extension}" if extension else "no extension"] += 1

    def _hint(self, ignored: Counter[str]) -> str:
        if not ignored:
            return ": it is empty"
        if ".tar" in ignored:
            return f": it holds {ignored['.tar']} tars; point at them, as in '{self.uri}/*.tar'"
        found = ", ".join(f"{count} {name}" for name, count in sorted(ignored.items())[:8])
        return f" (found {found}): point at files such as .jpg, .png or .webp"


def _digest_of(names: list[str], sizes: "array[int]") -> str:
    digest = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{len(name)} {name} {size}\n".encode())
    return digest.hexdigest()


def _size_of(entry: "os.DirEntry[str]") -> int:
    try:
        status = entry.stat()
    except OSError:
        return _NO_SIZE
    return status.st_size if stat.S_ISREG(status.st_mode) else _NO_SIZE
