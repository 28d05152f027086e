"""The members of a tar, in order, from their headers, and the samples of a webdataset tar, which share a key.

The headers are read by our own few lines: the standard library ends silently at a damaged header, and a shard that
lost its tail must not become a shorter shard. Payloads are never opened as anything, whatever their name.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cache_schema.errors import DamagedError, RefusedError
from stages.files.opened import SourceFile

BLOCK_BYTES = 512
"""Every header and every payload starts at a multiple of this."""

_MAX_NAME_BYTES = 1 << 16
_REGULAR, _LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL = (b"0", b"\x00", b"7"), b"L", b"K", (b"x", b"X"), b"g"
_SPARSE = b"S"
_RECORD_BYTES = 10240
_LINKS = {b"1": "hard link", b"2": "symbolic link"}
_WITHOUT_BODY = {**_LINKS, b"3": "device", b"4": "device", b"5": "folder", b"6": "pipe"}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular member: its header (with those that extend it) starts at `header_offset`, its payload at `offset`.

    A link has no payload; `link` says of which kind it is, and is empty for all others.
    """

    name: str
    header_offset: int
    offset: int
    size: int
    link: str = ""


@dataclass(frozen=True, slots=True)
class TarSample:
    """The members of one sample, which follow one another, with what stands behind the first dot of their names."""

    key: str
    header_offset: int
    members: tuple[tuple[str, Member], ...]


def samples_in(members: Iterator[Member], ignored: Counter[str]) -> Iterator[TarSample]:
    """Yields the samples: members that share the path up to the first dot of their name, whose extensions differ.

    A member whose name has no dot, or starts with one, belongs to none and is counted in `ignored`.
    """
    key, header_offset = "", 0
    found: dict[str, Member] = {}
    for member in members:
        member_key, extension = split_name(member.name)
        if not extension and not member.name.endswith("."):
            ignored["no extension"] += 1
            continue
        if not member_key or member_key.endswith("/"):
            ignored["hidden (its name starts with a dot)"] += 1
            continue
        if member_key != key or extension in found:
            if found:
                yield TarSample(key, header_offset, tuple(found.items()))
            key, header_offset, found = member_key, member.header_offset, {}
        found[extension] = member
    if found:
        yield TarSample(key, header_offset, tuple(found.items()))


def split_name(name: str) -> tuple[str, str]:
    """Returns the path of a member up to the first dot of its name, and what stands behind it, in lower case."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def read_members(
    uri: str,
    file: SourceFile,
    position: int,
    ignored: Counter[str],
    digest: Any = None,
    *,
    with_links: bool = False,
    zeros_ok: bool = False,
) -> Iterator[Member]:
    """Yields the regular members from the header at `position` on, and checks the end of the archive.

    Args:
        uri: the URI of the tar, for messages.
        file: the tar, open.
        position: where a header starts.
        ignored: counts what is neither a regular file nor a folder.
        digest: takes in name, size and kind of every member.
        with_links: yields links too, and does not count them.
        zeros_ok: lets any number of zero bytes follow the end mark, not only what fills its record of 10,240 bytes.

    Raises:
        DamagedError: the tar is empty, cut, compressed or damaged, or goes on after its end; names the offset.
        RefusedError: a sparse member.
    """
    file_bytes = file.size_bytes
    header_offset = position
    extended: dict[str, str] = {}
    while True:
        header = file.read_at(position, BLOCK_BYTES)
        if len(header) < BLOCK_BYTES:
            if position == 0:
                _refuse_compressed(uri, header)
            raise _cut(uri, position, file_bytes, "has no end mark" if not header else "ends inside a header")
        if header == bytes(BLOCK_BYTES):
            _check_end(uri, file, position, file_bytes, zeros_ok)
            return
        kind = header[156:157]
        size = _checked_size(uri, header, position)
        offset = position + BLOCK_BYTES
        if kind in _EXTENDED or kind == _GLOBAL or kind in (_LONG_NAME, _LONG_LINK):
            if size > _MAX_NAME_BYTES:
                raise DamagedError(f"{uri}: extended header of {size:,} bytes at offset {position:,}: write it again")
            body = _body(uri, file, offset, size, file_bytes)
            if kind == _LONG_NAME:
                extended["path"] = _text(body.rstrip(b"\x00"))
            elif kind in _EXTENDED:
                extended.update(_extended_fields(body))
            position = offset + _padded(size)
            continue
        if kind == _SPARSE or "GNU.sparse.major" in extended or "GNU.sparse.map" in extended:
            raise RefusedError(f"{uri}: sparse member at offset {position:,} is not supported: tar it plainly")
        if extended.get("size"):
            if not (extended["size"].isascii() and extended["size"].isdecimal()):
                raise _unreadable_size(uri, position)
            size = int(extended["size"])
        name = extended.get("path") or _name_of(header)
        if kind not in _REGULAR:
            # Only regular members have a body worth skipping by; links and folders claim none.
            size = 0 if kind in _WITHOUT_BODY else size
            word = _WITHOUT_BODY.get(kind, "of unknown kind")
            if word != "folder" and not (with_links and kind in _LINKS):
                ignored[word] += 1
        if offset + size > file_bytes:
            raise DamagedError(
                f"{uri}: member {name!r} at offset {position:,} claims {size:,} bytes, "
                f"the file ends at {file_bytes:,}: it is cut or damaged; fetch it again"
            )
        if digest is not None:
            digest.update(f"{len(name)} {name} {size} {kind!r}\n".encode("utf-8", "surrogatepass"))
        if kind in _REGULAR:
            yield Member(name, header_offset, offset, size)
        elif with_links and kind in _LINKS:
            yield Member(name, header_offset, offset, size, _LINKS[kind])
        position = header_offset = offset + _padded(size)
        extended = {}


def member_size(uri: str, file: SourceFile, offset_bytes: int) -> int:
    """Returns the size that the header right before a payload at `offset_bytes` states; raises `DamagedError`."""
    header = file.read_at(offset_bytes - BLOCK_BYTES, BLOCK_BYTES)
    if len(header) < BLOCK_BYTES:
        raise _cut(uri, offset_bytes, file.size_bytes, "ends inside a header")
    return _checked_size(uri, header, offset_bytes - BLOCK_BYTES)


def _body(uri: str, file: SourceFile, offset: int, size: int, file_bytes: int) -> bytes:
    body = file.read_at(offset, size)
    if len(body) < size:
        raise _cut(uri, offset, file_bytes, "ends inside an extended header")
    return body


def _checked_size(uri: str, header: bytes, position: int) -> int:
    """Returns the size of the member; raises `DamagedError` when the header is not one."""
    stated = header[148:156].strip(b" \x00")
    summed = sum(header) - sum(header[148:156]) + 8 * 32
    try:
        valid = int(stated, 8) == summed
    except ValueError:
        valid = False
    if not valid:
        if position == 0:
            # Asked only now: a name may begin like a compressed file.
            _refuse_compressed(uri, header)
            raise DamagedError(f"{uri} is not a tar (no header at offset 0): name its kind, as in text:PATH")
        raise DamagedError(f"{uri}: no valid header at offset {position:,}: it is damaged; fetch it again")
    field = header[124:136]
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if field[0] == 0x80 else 1 << 62
    digits = field.strip(b" \x00")
    # `int` would also take a sign, and a size below zero leads back to where the reader was.
    if digits.strip(b"01234567"):
        raise _unreadable_size(uri, position)
    return int(digits or b"0", 8)


def _unreadable_size(uri: str, position: int) -> DamagedError:
    return DamagedError(f"{uri}: unreadable size at offset {position:,}: it is damaged; fetch it again")


def _refuse_compressed(uri: str, head: bytes) -> None:
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise DamagedError(f"{uri} is compressed with {name}: unpack it to a plain .tar")


def _check_end(uri: str, file: SourceFile, position: int, file_bytes: int, zeros_ok: bool) -> None:
    """Refuses what stands after the end mark: another tar appended there would be lost without a word.

    A long tail of zeros is what a download leaves whose room was taken before it was cut.
    """
    second = file.read_at(position + BLOCK_BYTES, BLOCK_BYTES)
    if len(second) < BLOCK_BYTES:
        raise _cut(uri, position, file_bytes, "has half an end mark")
    at = position + BLOCK_BYTES
    while at < file_bytes:
        rest = file.read_at(at, 1 << 20)
        if not rest:
            return
        if rest.count(0) != len(rest):
            raise DamagedError(
                f"{uri} goes on after its end mark at offset {position:,}: "
                "if tars were joined, join them with 'tar --concatenate', else cut it there"
            )
        at += len(rest)
    filled = -(-(position + 2 * BLOCK_BYTES) // _RECORD_BYTES) * _RECORD_BYTES
    if file_bytes > filled and not zeros_ok:
        raise DamagedError(
            f"{uri} ends in {file_bytes - position:,} zero bytes, from offset {position:,} on, more than an end mark "
            f"and what fills its record of {_RECORD_BYTES:,}: the rest of it may be missing; fetch it again, or write "
            "?zeros=ok if it is whole"
        )


def _cut(uri: str, position: int, file_bytes: int, how: str) -> DamagedError:
    if file_bytes == 0:
        return DamagedError(f"{uri} is empty (0 bytes), not a tar: fetch it again, or leave it out")
    return DamagedError(f"{uri} {how} at offset {position:,} of {file_bytes:,}: it is cut; fetch it again")


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


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
