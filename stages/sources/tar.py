"""Webdataset tars: members that share the path up to the first dot of their name are one sample.

The headers are read by our own few lines: the standard library ends silently at a damaged header, and a shard that
lost its tail must not become a shorter shard. Payloads are never opened as anything, whatever their name.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cache_schema.errors import DamagedError, RefusedError, UsageError
from stages.image_formats import IMAGE_EXTENSIONS, is_misnamed
from stages.sources.base import MAX_PAYLOAD_BYTES, Modality, RawSample, ScannedSource, first_repeated, hash_of_key
from stages.sources.files import SourceFile, planned_file, read_range

_BLOCK = 512
_MAX_NAME_BYTES = 1 << 16
_REGULAR, _LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL = (b"0", b"\x00", b"7"), b"L", b"K", (b"x", b"X"), b"g"
_SPARSE = b"S"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    header_offset: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Group:
    """The members of one sample, which follow one another."""

    key: str
    header_offset: int
    image: _Member | None
    num_ignored: int


class TarSource:
    """A webdataset tar of images.

    The image of a sample is its first member with an image extension; other members are counted and ignored. A
    sample without one keeps its row as `src-no-image`. Keys are the paths up to the first dot of the file name.
    """

    kind: ClassVar[str] = "tar"
    modalities: ClassVar[tuple[Modality, ...]] = ("image",)
    extensions: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
    option_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, uri: str, modality: Modality, options: dict[str, str], *, fingerprint: str = "") -> None:
        self.uri = uri
        self.modality = modality
        self.options = options

    def scan(self) -> ScannedSource:
        """Reads every header, seeking over the payloads.

        Raises:
            DamagedError: the file is empty, cut, compressed or not a tar; the message names the offset.
            RefusedError: a key comes back after another one (interleaved or used twice); both places are named.
            UsageError: no sample has an image.
        """
        offsets, hashes = array("q"), array("Q")
        digest = hashlib.sha256()
        ignored: Counter[str] = Counter()
        num_images = 0
        with planned_file(self.uri) as file:
            for group in _groups(self._members(file, 0, ignored, digest), ignored):
                offsets.append(group.header_offset)
                hashes.append(hash_of_key(group.key))
                num_images += group.image is not None
        key_hashes = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.zeros(0, np.uint64)
        offsets_array = np.frombuffer(offsets, dtype=np.int64) if offsets else np.zeros(0, np.int64)
        if num_images == 0:
            found = ", ".join(sorted(ignored)) or "no members"
            raise UsageError(f"no images in {self.uri} (found {found}): a sample needs a member such as KEY.jpg")
        self._refuse_repeated_key(key_hashes, offsets_array)
        return ScannedSource(digest.hexdigest(), len(offsets_array), offsets_array, key_hashes, dict(ignored))

    def read(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        """Yields samples from the header at `offset_bytes` on; raises `DamagedError` when the tar ends early."""
        num_read = 0
        with planned_file(self.uri) as file:
            if num_samples == 0:
                return
            for group in _groups(self._members(file, offset_bytes, Counter(), None), Counter()):
                yield self._sample(file, group)
                num_read += 1
                if num_read == num_samples:
                    return
        raise DamagedError(
            f"{self.uri} holds {first_sample + num_read:,} samples, the plan has more: it changed; restore it"
        )

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns `size_bytes` bytes at the payload offset; raises `RefusedError` when the tar ends before."""
        with planned_file(self.uri) as file:
            return read_range(self.uri, file, offset_bytes, size_bytes)

    def _sample(self, file: SourceFile, group: _Group) -> RawSample:
        image = group.image
        if image is None:
            return RawSample(group.key, None, group.header_offset, 0, "src-no-image", "no image member")
        if image.size > MAX_PAYLOAD_BYTES:
            return RawSample(
                group.key, None, image.offset, image.size, "img-too-many-bytes", f"over {MAX_PAYLOAD_BYTES} bytes"
            )
        payload = read_range(self.uri, file, image.offset, image.size)
        note = "misnamed" if is_misnamed(image.name, payload) else ""
        return RawSample(group.key, payload, image.offset, image.size, "ok", note)

    def _refuse_repeated_key(self, key_hashes: np.ndarray, offsets: np.ndarray) -> None:
        repeated = first_repeated(key_hashes)
        if repeated is None:
            return
        first, second = repeated
        key = next(iter(self.read(second, 1, int(offsets[second])))).key
        raise RefusedError(
            f"key {key!r} comes twice in {self.uri}, at offset {offsets[first]:,} and again at {offsets[second]:,}: "
            "the members of a sample must follow one another, and a key may be used once; write the tar again"
        )

    def _members(
        self, file: SourceFile, position: int, ignored: Counter[str], digest: "hashlib._Hash | None"
    ) -> Iterator[_Member]:
        """Yields the regular members from the header at `position` on, and checks the end of the archive."""
        file_bytes = file.size_bytes
        header_offset = position
        extended: dict[str, str] = {}
        while True:
            header = file.read_at(position, _BLOCK)
            if position == 0:
                self._refuse_compressed(header)
            if len(header) < _BLOCK:
                raise self._cut(position, file_bytes, "has no end mark" if not header else "ends inside a header")
            if header == bytes(_BLOCK):
                self._check_end(file, position, file_bytes)
                return
            kind = header[156:157]
            size = self._checked_size(header, position)
            offset = position + _BLOCK
            if kind in _EXTENDED or kind == _GLOBAL or kind in (_LONG_NAME, _LONG_LINK):
                if size > _MAX_NAME_BYTES:
                    raise DamagedError(
                        f"{self.uri}: extended header of {size:,} bytes at offset {position:,}: write it again"
                    )
                body = self._body(file, offset, size, file_bytes)
                if kind == _LONG_NAME:
                    extended["path"] = _text(body.rstrip(b"\x00"))
                elif kind in _EXTENDED:
                    extended.update(_extended_fields(body))
                position = offset + _padded(size)
                continue
            if kind == _SPARSE or "GNU.sparse.major" in extended or "GNU.sparse.map" in extended:
                raise RefusedError(f"{self.uri}: sparse member at offset {position:,} is not supported: tar it plainly")
            if "size" in extended and extended["size"].isdecimal():
                size = int(extended["size"])
            name = extended.get("path") or _name_of(header)
            if kind not in _REGULAR:
                # Only regular members have a body worth skipping by; links and folders claim none.
                size = size if kind not in (b"1", b"2", b"3", b"4", b"5", b"6") else 0
                ignored["not a regular file"] += 1
            if offset + size > file_bytes:
                raise DamagedError(
                    f"{self.uri}: member {name!r} at offset {position:,} claims {size:,} bytes, "
                    f"the file ends at {file_bytes:,}: it is cut or damaged; fetch it again"
                )
            if digest is not None:
                digest.update(f"{len(name)} {name} {size} {kind!r}\n".encode("utf-8", "surrogatepass"))
            if kind in _REGULAR:
                yield _Member(name, header_offset, offset, size)
            position = header_offset = offset + _padded(size)
            extended = {}

    def _body(self, file: SourceFile, offset: int, size: int, file_bytes: int) -> bytes:
        body = file.read_at(offset, size)
        if len(body) < size:
            raise self._cut(offset, file_bytes, "ends inside an extended header")
        return body

    def _checked_size(self, header: bytes, position: int) -> int:
        """Returns the size of the member; raises `DamagedError` when the header is not one."""
        stated = header[148:156].strip(b" \x00")
        summed = sum(header) - sum(header[148:156]) + 8 * 32
        try:
            valid = int(stated, 8) == summed
        except ValueError:
            valid = False
        if not valid:
            if position == 0:
                raise DamagedError(f"{self.uri} is not a tar (no header at offset 0): name its kind, as in text:PATH")
            raise DamagedError(f"{self.uri}: no valid header at offset {position:,}: it is damaged; fetch it again")
        field = header[124:136]
        if field[0] & 0x80:
            return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if field[0] == 0x80 else 1 << 62
        try:
            return int(field.strip(b" \x00") or b"0", 8)
        except ValueError:
            raise DamagedError(
                f"{self.uri}: unreadable size at offset {position:,}: it is damaged; fetch it again"
            ) from None

    def _refuse_compressed(self, head: bytes) -> None:
        for magic, name in _COMPRESSED.items():
            if head.startswith(magic):
                raise DamagedError(f"{self.uri} is compressed with {name}: unpack it to a plain .tar")

    def _check_end(self, file: SourceFile, position: int, file_bytes: int) -> None:
        """Refuses what stands after the end mark: another tar appended there would be lost without a word."""
        second = file.read_at(position + _BLOCK, _BLOCK)
        if len(second) < _BLOCK:
            raise self._cut(position, file_bytes, "has half an end mark")
        at = position + _BLOCK
        while at < file_bytes:
            rest = file.read_at(at, 1 << 20)
            if not rest:
                return
            if rest.count(0) != len(rest):
                raise DamagedError(
                    f"{self.uri} goes on after its end mark at offset {position:,}: "
                    "if tars were joined, join them with 'tar --concatenate', else cut it there"
                )
            at += len(rest)

    def _cut(self, position: int, file_bytes: int, how: str) -> DamagedError:
        if file_bytes == 0:
            return DamagedError(f"{self.uri} is empty (0 bytes), not a tar: fetch it again, or leave it out")
        return DamagedError(f"{self.uri} {how} at offset {position:,} of {file_bytes:,}: it is cut; fetch it again")


def _groups(members: Iterator[_Member], ignored: Counter[str]) -> Iterator[_Group]:
    """Yields the samples; a member whose name has no dot, or starts with one, belongs to none."""
    key, header_offset, image, num_ignored = "", 0, None, 0
    seen: set[str] = set()
    for member in members:
        folder, _, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        extension = extension.lower()
        if not dot or not stem:
            ignored["no extension"] += 1
            continue
        member_key = f"{folder}/{stem}" if folder else stem
        if member_key != key or extension in seen:
            if seen:
                yield _Group(key, header_offset, image, num_ignored)
            key, header_offset, image, num_ignored, seen = member_key, member.header_offset, None, 0, set()
        seen.add(extension)
        if image is None and extension in IMAGE_EXTENSIONS:
            image = member
        else:
            ignored[f".{extension}"] += 1
            num_ignored += 1
    if seen:
        yield _Group(key, header_offset, image, num_ignored)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(raw: bytes) -> str:
    # Names are bytes; this keeps every one of them different and printable.
    return raw.decode("utf-8", "backslashreplace")


def _name_of(header: bytes) -> str:
    name = header[:100].split(b"\x00", 1)[0]
    prefix = header[345:500].split(b"\x00", 1)[0] if header[257:263] == b"ustar\x00" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _extended_fields(body: bytes) -> dict[str, str]:
    """Returns the records of a pax header: each is `LENGTH KEY=VALUE` and a newline."""
    fields: dict[str, str] = {}
    while body:
        length, _, rest = body.partition(b" ")
        if not length.isdigit() or not len(length) + 2 < int(length) <= len(body):
            break
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        fields[_text(key)] = _text(value)
        body = body[int(length) :]
    return fields
