"""Webdataset tars: members that share the path up to the first dot of their name are one sample.

A sample may give several rows: the first has its key, further ones the key with `#1`, `#2` … behind it. All places of
headers and payloads are multiples of 512, so a place also says which row (`read`) or which text of a `.json` member
(`read_one`) is meant: that number is added to it.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError, unknown_name
from cache_schema.layout import Modality
from stages.files.keys import first_repeated, hash_of_key
from stages.files.lines import MAX_LINE_BYTES
from stages.files.opened import SourceFile, planned_file, read_range
from stages.files.tar_members import BLOCK_BYTES, Member, TarSample, member_size, read_members, samples_in
from stages.images.formats import IMAGE_EXTENSIONS, is_misnamed
from stages.sources.base import MAX_PAYLOAD_BYTES, RawSample, ScannedSource
from stages.sources.entries import BrokenEntry
from stages.sources.jsonl import parse_object

_MAX_ROWS = BLOCK_BYTES - 1
_JSON_KEYS = ("caption", "text")
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a sample: the member of its payload, or a text of a `.json` member, or neither, with a status."""

    member: Member | None
    text: bytes | None = None
    text_number: int = 0
    status: str = "ok"
    reason: str = ""


class TarSource:
    """A webdataset tar of images, of sentences or of both.

    Option for images: `images=all`; for sentences: `ext` (`txt` or `json`) and `json_key`.

    The image of a sample is its first member with an image extension; with `images=all` every member whose last
    extension is one is a row (`x.jpg`, `x.seg.png`). The sentences of a sample are its `.txt` members (`x.txt`,
    `x.0.txt` …), each as a whole but for a line feed at its end; where it has none, those of its `.json`: a string, or
    a list of them, under `json_key` (default `caption`, else `text`). Other members are counted and ignored. A sample
    with nothing keeps its row as `src-no-image` or `src-no-text`. Keys are the paths up to the first dot of the file
    name.
    """

    kind: ClassVar[str] = "tar"
    modalities: ClassVar[tuple[Modality, ...]] = ("image", "text")
    extensions: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
    option_names: ClassVar[tuple[str, ...]] = ("images", "ext", "json_key")

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options
        fitting = ("images",) if modality == "image" else ("ext", "json_key")
        for name in options:
            if name not in fitting:
                raise UsageError(
                    f"option {name} of {uri} is not for {modality}s (they have {', '.join(fitting)}): drop it"
                )
        for name, known in (("images", ("all", "first")), ("ext", ("json", "txt"))):
            if options.get(name, known[0]) not in known:
                raise unknown_name(f"value of option {name}", options[name], known)
        self._all_images = options.get("images") == "all"
        self._text_extensions = (options["ext"],) if "ext" in options else ("txt", "json")
        self._json_keys = (options["json_key"],) if "json_key" in options else _JSON_KEYS

    def scan(self) -> ScannedSource:
        """Reads every header, seeking over the payloads; of sentences also the `.json` members that hold some.

        Raises:
            DamagedError: the file is empty, cut, compressed or not a tar; the message names the offset.
            RefusedError: a key comes back after another one (interleaved or used twice), both places are named; a
                sample has more than 511 rows; or no `.json` has the key.
            UsageError: no sample has an image, or a sentence.
        """
        offsets, hashes = array("q"), array("Q")
        digest = self._new_digest()
        ignored: Counter[str] = Counter()
        found: dict[str, Any] = {}
        num_usable = num_with_member = 0
        with planned_file(self.uri) as file:
            for group in samples_in(read_members(self.uri, file, 0, ignored, digest), ignored):
                for number, row in enumerate(self._rows(file, group, ignored, digest, found)):
                    offsets.append(group.header_offset + number)
                    hashes.append(hash_of_key(_key_of(group, number)))
                    num_with_member += row.member is not None
                    num_usable += row.status == "ok"
        key_hashes = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.zeros(0, np.uint64)
        offsets_array = np.frombuffer(offsets, dtype=np.int64) if offsets else np.zeros(0, np.int64)
        if num_with_member == 0:
            what = ", ".join(sorted(ignored)) or "no members"
            example = "KEY.jpg" if self.modality == "image" else " or ".join(f"KEY.{e}" for e in self._text_extensions)
            raise UsageError(
                f"no {self.modality}s in {self.uri} (found {what}): a sample needs a member such as {example}"
            )
        if num_usable == 0 and found:
            raise RefusedError(
                f"{self.uri}: no .json has text under {' or '.join(map(repr, self._json_keys))} (the first has "
                f"{', '.join(list(found)[:_NAMES_SHOWN])}): choose one with ?json_key=NAME"
            )
        self._refuse_repeated_key(key_hashes, offsets_array)
        return ScannedSource(digest.hexdigest(), len(offsets_array), offsets_array, key_hashes, dict(ignored))

    def read(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        """Yields rows from the header at `offset_bytes` on; raises `DamagedError` when the tar ends early."""
        num_read = 0
        first_row = offset_bytes % BLOCK_BYTES
        with planned_file(self.uri) as file:
            if num_samples == 0:
                return
            for group in samples_in(read_members(self.uri, file, offset_bytes - first_row, Counter()), Counter()):
                for number, row in enumerate(self._rows(file, group, Counter())):
                    if number < first_row:
                        continue
                    yield self._sample(file, group, number, row)
                    num_read += 1
                    if num_read == num_samples:
                        return
                first_row = 0
        raise DamagedError(
            f"{self.uri} holds {first_sample + num_read:,} samples, the plan has more: it changed; restore it"
        )

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns `size_bytes` bytes at the payload offset; raises `RefusedError` when they are not there any more."""
        text_number = offset_bytes % BLOCK_BYTES
        with planned_file(self.uri) as file:
            if self.modality == "image" or not text_number:
                return read_range(self.uri, file, offset_bytes, size_bytes)
            start = offset_bytes - text_number
            member = Member(key, start, start, member_size(self.uri, file, start))
            rows = self._texts_of_json(file, member)
        text = rows[text_number - 1].text if text_number <= len(rows) else None
        if text is None or len(text) != size_bytes:
            raise MismatchError(
                f"text {text_number} of the .json at offset {start:,} of {self.uri} is not the planned one: "
                "it changed; restore it"
            )
        return text

    def _new_digest(self) -> Any:
        digest = hashlib.sha256()
        if self._all_images:
            digest.update(b"all images\n")
        if self.modality == "text":
            digest.update(f"texts {self._text_extensions} {self._json_keys}\n".encode("utf-8", "surrogatepass"))
        return digest

    def _rows(
        self,
        file: SourceFile,
        group: TarSample,
        ignored: Counter[str],
        digest: Any = None,
        found: dict[str, Any] | None = None,
    ) -> list[_Row]:
        """Returns the rows of one sample, at least one, and counts the members that give none.

        What decides how many rows there are goes into `digest`, the names in the first `.json` into `found`.
        """
        used = self._images_of(group) if self.modality == "image" else self._members_with_text(group)
        ignored.update(f".{extension}" for extension, member in group.members if member not in used)
        rows: list[_Row] = []
        for member in used:
            if self.modality == "image" or not member.name.lower().endswith(".json"):
                rows.append(_Row(member))
            else:
                rows += self._texts_of_json(file, member, digest, found)
        if len(rows) > _MAX_ROWS:
            raise RefusedError(
                f"{self.uri}: sample {group.key!r} has {len(rows):,} {self.modality}s, over {_MAX_ROWS}: split it"
            )
        return rows or [_Row(None, status=f"src-no-{self.modality}", reason=f"no {self.modality} member")]

    def _images_of(self, group: TarSample) -> list[Member]:
        if self._all_images:
            return [member for extension, member in group.members if _last(extension) in IMAGE_EXTENSIONS]
        return images_of(group)[:1]

    def _members_with_text(self, group: TarSample) -> list[Member]:
        for wanted in self._text_extensions:
            members = [member for extension, member in group.members if _last(extension) == wanted]
            if members:
                return members
        return []

    def _texts_of_json(
        self, file: SourceFile, member: Member, digest: Any = None, found: dict[str, Any] | None = None
    ) -> list[_Row]:
        if member.size > MAX_LINE_BYTES:
            return [_Row(member, status="text-too-long", reason=f".json over {MAX_LINE_BYTES} bytes")]
        body = read_range(self.uri, file, member.offset, member.size)
        if digest is not None:
            digest.update(body)
        try:
            named = parse_object(body)
        except BrokenEntry as error:
            return [_Row(member, status=f"text-{error.what}", reason=error.reason)]
        if found is not None and not found:
            found.update(named)
        value = next((named[key] for key in self._json_keys if key in named), None)
        if isinstance(value, list) and not value:
            return [_Row(member, status="src-no-text", reason="empty list")]
        values = value if isinstance(value, list) else [value]
        return [_text_row(member, number, one) for number, one in enumerate(values, start=1)]

    def _sample(self, file: SourceFile, group: TarSample, number: int, row: _Row) -> RawSample:
        key, member = _key_of(group, number), row.member
        if member is None:
            return RawSample(key, None, group.header_offset, 0, row.status, row.reason)
        if row.text is not None:
            return RawSample(key, row.text, member.offset + row.text_number, len(row.text))
        if row.status != "ok":
            return RawSample(key, None, member.offset, member.size, row.status, row.reason)
        is_image = self.modality == "image"
        limit = MAX_PAYLOAD_BYTES if is_image else MAX_LINE_BYTES
        if member.size > limit:
            status = "img-too-many-bytes" if is_image else "text-too-long"
            return RawSample(key, None, member.offset, member.size, status, f"over {limit} bytes")
        payload = read_range(self.uri, file, member.offset, member.size)
        if not is_image:
            payload = payload.removesuffix(b"\n").removesuffix(b"\r")
            return RawSample(key, payload, member.offset, len(payload))
        note = "misnamed" if is_misnamed(member.name, payload) else ""
        return RawSample(key, payload, member.offset, member.size, "ok", note)

    def _refuse_repeated_key(self, key_hashes: np.ndarray, offsets: np.ndarray) -> None:
        repeated = first_repeated(key_hashes)
        if repeated is None:
            return
        key = next(iter(self.read(repeated[1], 1, int(offsets[repeated[1]])))).key
        first_offset, second_offset = (int(offsets[at]) // BLOCK_BYTES * BLOCK_BYTES for at in repeated)
        raise RefusedError(
            f"key {key!r} comes twice in {self.uri}, at offset {first_offset:,} and again at {second_offset:,}: "
            "the members of a sample must follow one another, and a key may be used once; write the tar again"
        )


def images_of(sample: TarSample) -> list[Member]:
    """Returns the members that are images by their whole extension; the first is what the sample stands for."""
    return [member for extension, member in sample.members if extension in IMAGE_EXTENSIONS]


def _key_of(group: TarSample, number: int) -> str:
    return f"{group.key}#{number}" if number else group.key


def _last(extension: str) -> str:
    return extension.rpartition(".")[2]


def _text_row(member: Member, number: int, value: object) -> _Row:
    if not isinstance(value, str):
        return _Row(member, status="text-type", reason="null" if value is None else "not text")
    try:
        return _Row(member, value.encode("utf-8"), number)
    except UnicodeEncodeError:
        return _Row(member, status="text-encoding", reason="half a surrogate pair")
