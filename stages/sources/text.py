"""Plain text, one sentence per line; the key is the line number, counted from 1."""

import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO, ClassVar

import numpy as np

from cache_schema.errors import MismatchError, RefusedError, unknown_name
from cache_schema.layout import Modality
from stages.files.compressed import content_of, with_compressions
from stages.files.lines import ENCODINGS, MAX_LINE_BYTES, SIGNATURE, LineCheck, read_ahead, read_line
from stages.sources.base import RawSample, ScannedSource

_HEAD_BYTES = 4096
_CHUNK_BYTES = 4 << 20
_LINE_FEED = 10


class TextSource:
    """Lines of a text file, plain or compressed.

    Options: `encoding` (default utf-8).

    Every line is a row, empty ones too; a line feed at the very end opens no further line. A carriage return before
    the line feed, and a UTF-8 signature at the start of the file, belong to the file and not to the text.
    """

    kind: ClassVar[str] = "text"
    modalities: ClassVar[tuple[Modality, ...]] = ("text",)
    extensions: ClassVar[tuple[str, ...]] = with_compressions(".txt", ".text")
    option_names: ClassVar[tuple[str, ...]] = ("encoding",)

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options
        self._encoding = options.get("encoding", "utf-8")
        if self._encoding not in ENCODINGS:
            raise unknown_name("encoding", self._encoding, ENCODINGS)

    def scan(self) -> ScannedSource:
        """Reads the file once, in chunks, for its line starts and its digest; one without a line is an empty shard.

        Raises:
            DamagedError: the file has 0 bytes, a hole or a tail of zero bytes.
            RefusedError: it is in UTF-16, has a carriage return without a line feed, or more than one line in a hundred
                is not in the declared UTF-8.
        """
        digest = hashlib.sha256(f"{self._encoding}\n".encode())
        validity, check = _Utf8Lines(), LineCheck(self.uri)
        first, position = 0, 0
        starts: list[np.ndarray] = []
        with content_of(self.uri) as content:
            for chunk in _chunks(content):
                if position == 0:
                    refuse_wide_characters(self.uri, chunk)
                    first = len(SIGNATURE) if chunk.startswith(SIGNATURE) else 0
                check.add(chunk)
                digest.update(chunk)
                if self._encoding == "utf-8":
                    validity.add(chunk)
                starts.append(np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == _LINE_FEED) + (position + 1))
                position += len(chunk)
        check.finish()
        validity.finish()
        offsets = np.concatenate([np.array([first], dtype=np.int64), *starts]).astype(np.int64)
        offsets = offsets[offsets < position]
        if validity.num_bad * 100 > len(offsets):
            raise RefusedError(
                f"{self.uri}: {validity.num_bad:,} of {len(offsets):,} lines are not UTF-8, the first is line "
                f"{validity.first_bad:,}: declare the encoding, as in '{os.path.basename(self.uri)}?encoding=latin-1', "
                "or convert the file with iconv"
            )
        return ScannedSource(digest.hexdigest(), len(offsets), offsets, np.zeros(0, dtype=np.uint64))

    def read(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        """Yields lines from `offset_bytes` on; raises `MismatchError` when the file ends early."""
        return read_ahead(self._samples(first_sample, num_samples, offset_bytes))

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns one line as UTF-8; raises `RefusedError` when the file ends before."""
        with content_of(self.uri, offset_bytes) as content:
            line = content.read(min(size_bytes, MAX_LINE_BYTES + 1))
        payload = self._as_utf8(line) if len(line) == size_bytes else None
        if payload is None:
            raise MismatchError(
                f"line {key} of {self.uri} is not {size_bytes:,} bytes of {self._encoding} at offset {offset_bytes:,} "
                "any more: it changed; restore it"
            )
        return payload

    def _samples(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        with content_of(self.uri, offset_bytes) as content:
            position = offset_bytes
            for number in range(first_sample + 1, first_sample + num_samples + 1):
                line, line_bytes = read_line(content, MAX_LINE_BYTES + 2)
                if not line:
                    raise MismatchError(
                        f"{self.uri} ends after {number - 1:,} lines, the plan has more: it changed; restore it"
                    )
                yield self._sample(str(number), line, position, line_bytes)
                position += line_bytes

    def _sample(self, key: str, line: bytes, position: int, line_bytes: int) -> RawSample:
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if line_bytes > len(line) or len(text) > MAX_LINE_BYTES:
            return RawSample(key, None, position, line_bytes, "text-too-long", f"over {MAX_LINE_BYTES} bytes")
        payload = self._as_utf8(text)
        if payload is None:
            return RawSample(key, None, position, len(text), "text-encoding", f"not in {self._encoding}")
        return RawSample(key, payload, position, len(text))

    def _as_utf8(self, text: bytes) -> bytes | None:
        if self._encoding == "utf-8":
            # Lines that are not UTF-8 are judged by the text cleaning, with their digest taken.
            return text
        try:
            return text.decode(self._encoding).encode("utf-8")
        except UnicodeDecodeError:
            return None


def refuse_wide_characters(uri: str, head: bytes) -> None:
    """Raises `RefusedError` when the first bytes of a text file look like UTF-16 or UTF-32."""
    text = head.rstrip(b"\0")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or text.count(0) * 4 > len(text):
        raise RefusedError(
            f"{uri} is not UTF-8 text (every other byte is zero, as in UTF-16): convert it with "
            "'iconv -f UTF-16 -t UTF-8'"
        )


def _chunks(content: BinaryIO) -> Iterator[bytes]:
    chunk = content.read(_HEAD_BYTES)
    while chunk:
        yield chunk
        chunk = content.read(_CHUNK_BYTES)


class _Utf8Lines:
    """Counts the lines that are not UTF-8, in flat memory."""

    def __init__(self) -> None:
        self.num_bad = 0
        self.first_bad = 0
        self._num_lines = 0
        self._tail = b""
        self._tail_dropped = False

    def add(self, chunk: bytes) -> None:
        end = chunk.rfind(b"\n") + 1
        if end == 0:
            self._keep(chunk)
            return
        self._judge(self._tail + chunk[:end])
        self._tail, self._tail_dropped = b"", False
        self._keep(chunk[end:])

    def finish(self) -> None:
        if self._tail:
            self._judge(self._tail + b"\n")

    def _keep(self, piece: bytes) -> None:
        if self._tail_dropped or len(self._tail) + len(piece) > _CHUNK_BYTES:
            # A line this long is set aside whatever it holds.
            self._tail, self._tail_dropped = b"", True
        else:
            self._tail += piece

    def _judge(self, lines: bytes) -> None:
        first_line = self._num_lines
        self._num_lines += lines.count(b"\n")
        if self._tail_dropped:
            lines = b"\n" + lines.partition(b"\n")[2]
        if _is_utf8(lines):
            return
        for number, line in enumerate(lines.split(b"\n"), start=first_line + 1):
            if not _is_utf8(line):
                self.num_bad += 1
                self.first_bad = self.first_bad or number


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
