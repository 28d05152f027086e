"""The common part of JSON lines and CSV: text files of entries, each with named columns, each one sample.

An entry that cannot be taken apart keeps its row, with a status and a reason; where more than one in a hundred are like
that, the file is not what it was taken for and is refused. An entry with nothing in it is an empty sentence.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, NamedTuple, cast

import numpy as np

from cache_schema.errors import MismatchError, RefusedError, UsageError
from cache_schema.layout import Modality
from stages.files.compressed import content_of
from stages.files.keys import first_repeated, hash_of_key
from stages.files.lines import MAX_LINE_BYTES, SIGNATURE, LineCheck, read_ahead
from stages.files.strict_base64 import decoded_base64
from stages.sources.base import RawSample, ScannedSource
from stages.sources.image_files import ImageFile, planned_now, read_image_file, require_root, root_of

MAX_IMAGE_ENTRY_BYTES = 64 << 20
"""A longer entry with an image in base64 is set aside unread, as `img-too-many-bytes`."""

TABLE_OPTIONS = ("column", "key_column", "path_column", "root")


@dataclass(frozen=True, slots=True)
class Entry:
    """The bytes of one entry, or None of one that is too long; where they start, and in which line, 0 if unknown."""

    offset_bytes: int
    line: int
    data: bytes | None


class BrokenEntry(Exception):
    """An entry cannot be taken apart: `what` (json, csv, encoding) is the end of its status."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(reason)
        self.what = what
        self.reason = reason


class BareReturn(BrokenEntry):
    """A carriage return stands where only a line end may."""


class EntrySource(ABC):
    """Base of the kinds whose samples are the entries of a text file, plain or compressed.

    Options: `column` (default `text` or `image`), `key_column` (default the number of the entry, from 1); for images
    `path_column` in place of `column`, and the `root` of its paths (default the folder of the file). An image in
    `column` is base64.
    """

    kind: ClassVar[str]
    entry_word: ClassVar[str]
    _returns_ok = False

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options
        self.root = resolve_root(uri, modality, options)
        self._value_option = "path_column" if "path_column" in options else "column"
        self._column = options.get(self._value_option, modality)
        self._key_column = options.get("key_column")
        is_inline_image = modality == "image" and self.root is None
        self._max_entry_bytes = MAX_IMAGE_ENTRY_BYTES if is_inline_image else MAX_LINE_BYTES

    @abstractmethod
    def _prepare(self) -> None:
        """Learns what has to be known before any entry is read, once; raises `RefusedError`."""

    @abstractmethod
    def _entries(self, content: BinaryIO, offset_bytes: int, *, line: int = 0) -> Iterator[Entry]:
        """Yields the entries of `content`, which stands at `offset_bytes`; at 0 it skips what comes before them.

        `line` is the number of the first line there, 0 if nobody counted.
        """

    @abstractmethod
    def _values(self, data: bytes) -> tuple[object, object]:
        """Returns the value and the key of one entry, None where missing; raises `BrokenEntry`."""

    @abstractmethod
    def _settings(self) -> list[str]:
        """Returns what changes the samples, besides the bytes of the file."""

    def _found(self, data: bytes) -> str:
        """Returns which columns the first entry has, for messages."""
        return ""

    def scan(self) -> ScannedSource:
        """Reads the file once, for where its entries start, their keys and its digest; an empty shard has none.

        Raises:
            UsageError: the root of the paths is no folder.
            DamagedError: the file has 0 bytes, a hole or a tail of zero bytes.
            RefusedError: it is in UTF-16, a carriage return stands where only a line end may, more than one entry in a
                hundred is broken, none has the column, or a key is missing or repeated; the message names the lines.
        """
        state = {}
        if self.root is not None:
            require_root(self.root)
            state = planned_now()
        self._prepare()
        tally, check = _Tally(self), LineCheck(self.uri, returns_ok=self._returns_ok)
        digest = hashlib.sha256(json.dumps([self.kind, self._value_option, *self._settings()]).encode())
        with content_of(self.uri) as content:
            for entry in self._entries(cast(BinaryIO, _Watched(content, digest, check)), 0, line=1):
                tally.add(entry)
        check.finish()
        tally.judge()
        offsets = np.frombuffer(tally.offsets, dtype=np.int64) if tally.offsets else np.zeros(0, np.int64)
        hashes = np.frombuffer(tally.hashes, dtype=np.uint64) if tally.hashes else np.zeros(0, np.uint64)
        self._refuse_repeated_key(hashes, offsets, tally.lines)
        return ScannedSource(digest.hexdigest(), len(offsets), offsets, hashes, state=state)

    def read(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        """Yields entries from `offset_bytes` on; raises `MismatchError` when the file ends early."""
        return read_ahead(self._samples(first_sample, num_samples, offset_bytes))

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns the payload of the entry at `offset_bytes`; raises `RefusedError` when it is not there any more."""
        self._prepare()
        with content_of(self.uri, offset_bytes) as content:
            entry = next(self._entries(content, offset_bytes), None)
        sample = None if entry is None else self._sample(0, entry)
        if sample is None or sample.payload is None or sample.size_bytes != size_bytes:
            raise MismatchError(
                f"the {self.entry_word} of {key!r} at offset {offset_bytes:,} of {self.uri} is not the planned one "
                f"({sample.status if sample else 'nothing there'}): it or its image changed; restore it"
            )
        return sample.payload

    def _samples(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        self._prepare()
        with content_of(self.uri, offset_bytes) as content:
            entries = self._entries(content, offset_bytes)
            for number in range(first_sample, first_sample + num_samples):
                entry = next(entries, None)
                if entry is None:
                    raise MismatchError(
                        f"{self.uri} ends after {number:,} {self.entry_word}s, the plan has more: it changed; "
                        "restore it"
                    )
                yield self._sample(number, entry)

    def _sample(self, number: int, entry: Entry) -> RawSample:
        prefix = "src" if self.modality == "image" else "text"
        name = f"#{number + 1}" if self._key_column else str(number + 1)
        place = entry.offset_bytes
        if entry.data is None:
            status = "img-too-many-bytes" if self.modality == "image" else "text-too-long"
            return RawSample(name, None, place, 0, status, f"over {self._max_entry_bytes} bytes")
        if not entry.data.strip():
            status = "src-no-image" if self.modality == "image" else "text-empty"
            return RawSample(name, None, place, 0, status, f"empty {self.entry_word}")
        try:
            value, key = self._values(entry.data)
        except BrokenEntry as error:
            return RawSample(name, None, place, 0, f"{prefix}-{error.what}", error.reason)
        if self._key_column:
            name = self._key_text(key, entry)
        found = self._payload(value)
        return RawSample(name, found.payload, place, found.size_bytes, found.status, found.reason, found.seen)

    def _payload(self, value: object) -> "_Payload | ImageFile":
        is_image = self.modality == "image"
        if value is None or (is_image and value == ""):
            return _Payload(None, 0, "src-no-image" if is_image else "text-type", "null")
        if not isinstance(value, str):
            return _Payload(None, 0, "src-type" if is_image else "text-type", "not text")
        if self.root is not None:
            return read_image_file(self.root, value)
        if is_image:
            payload, broken = decoded_base64(value.strip().encode("ascii", "replace")), ("src-encoding", "not base64")
        else:
            payload, broken = _utf8(value), ("text-encoding", "half a surrogate pair")
        return _Payload(None, 0, *broken) if payload is None else _Payload(payload, len(payload))

    def _key_text(self, key: object, entry: Entry) -> str:
        if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
            raise RefusedError(
                f"{self.uri}: column {self._key_column!r} has no key at {place_of(entry.line, entry.offset_bytes)}, "
                "where text or a whole number must stand: fill it in, or leave key_column out"
            )
        return str(key).encode("utf-8", "backslashreplace").decode()

    def _refuse_repeated_key(self, hashes: np.ndarray, offsets: np.ndarray, lines: "array[int]") -> None:
        repeated = first_repeated(hashes)
        if repeated is None:
            return
        first, second = repeated
        key = next(iter(self.read(second, 1, int(offsets[second])))).key
        raise RefusedError(
            f"{self.uri}: key {key!r} stands in line {lines[first]:,} and again in line {lines[second]:,}: keys must "
            "be unique; choose another key_column or leave it out"
        )


class _Payload(NamedTuple):
    """What stands in the column itself; the counterpart of `ImageFile`."""

    payload: bytes | None
    size_bytes: int
    status: str = "ok"
    reason: str = ""
    seen: None = None


class _Tally:
    """The state of a scan."""

    def __init__(self, source: EntrySource) -> None:
        self.offsets, self.lines, self.hashes = array("q"), array("q"), array("Q")
        self._source = source
        self._num_usable = self._num_broken = 0
        self._first_broken = ""
        self._found = ""

    def add(self, entry: Entry) -> None:
        source = self._source
        key: object = f"#{len(self.offsets) + 1}"
        if entry.data is not None and entry.data.strip():
            try:
                value, found_key = source._values(entry.data)
                self._num_usable += isinstance(value, str)
                self._found = self._found or source._found(entry.data)
                key = source._key_text(found_key, entry) if source._key_column else ""
            except BareReturn as error:
                raise RefusedError(
                    f"{source.uri}: a {error.reason} in line {entry.line:,} (offset {entry.offset_bytes:,}): if "
                    "carriage returns end its lines, convert it with tr '\\r' '\\n', else take it out"
                ) from None
            except BrokenEntry as error:
                self._num_broken += 1
                self._first_broken = self._first_broken or f"in line {entry.line:,} ({error.reason})"
        else:
            # Nothing to judge: neither says anything about the column.
            self._num_usable += 1
        self.offsets.append(entry.offset_bytes)
        if source._key_column:
            self.lines.append(entry.line)
            self.hashes.append(hash_of_key(str(key)))

    def judge(self) -> None:
        source = self._source
        if not self.offsets:
            return
        if self._num_broken * 100 > len(self.offsets):
            raise RefusedError(
                f"{source.uri}: {self._num_broken:,} of {len(self.offsets):,} {source.entry_word}s are broken, the "
                f"first {self._first_broken}: it is damaged or not {source.kind}; mend it, declare its encoding, or "
                "name its kind, as in text:PATH"
            )
        if not self._num_usable:
            raise RefusedError(
                f"{source.uri}: column {source._column!r} has text in none of its {len(self.offsets):,} "
                f"{source.entry_word}s (found {self._found or 'nothing'}): choose one with ?{source._value_option}=NAME"
            )


class _Watched:
    """A stream whose lines go into a digest and a check as they are read."""

    def __init__(self, content: BinaryIO, digest: Any, check: LineCheck) -> None:
        self._content = content
        self._digest = digest
        self._check = check

    def readline(self, size: int) -> bytes:
        line = self._content.readline(size)
        self._digest.update(line)
        self._check.add(line)
        return line


def place_of(line: int, offset_bytes: int) -> str:
    """Returns where an entry stands, in words; lines are counted only by who reads from the beginning."""
    return f"line {line:,} (offset {offset_bytes:,})" if line else f"offset {offset_bytes:,}"


def without_signature(data: bytes, offset_bytes: int) -> tuple[bytes, int]:
    """Returns the first entry of a file, and where it starts, without the UTF-8 signature that may stand before it."""
    if offset_bytes == 0 and data.startswith(SIGNATURE):
        return data[len(SIGNATURE) :], len(SIGNATURE)
    return data, offset_bytes


def _utf8(text: str) -> bytes | None:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return None


def resolve_root(uri: str, modality: Modality, options: dict[str, str]) -> str | None:
    """Returns the root of the paths in `path_column`, None where there is no such column; resolves it in `options`.

    Raises:
        UsageError: options that do not go together.
    """
    if "path_column" not in options:
        if "root" in options:
            raise UsageError(f"root of source {uri} is for paths in a column: name it with path_column, or drop root")
        return None
    if modality != "image" or "column" in options:
        why = "column says where the bytes are" if modality == "image" else "sentences stand in the file itself"
        raise UsageError(f"path_column of source {uri} is for images in files of their own, but {why}: drop one")
    root = root_of(uri, options)
    if "root" in options:
        options["root"] = root
    return root
