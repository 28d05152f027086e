"""TSV files as the official DIME-FM code reads them: KEY, tab, base64 of an image file; or KEY, tab, captions.

**Source:** `TSVImageDataset._decode_image` and `TSVTextDataset._decode_text` (Training/datasets/tsv.py).
Differences: bad base64 is a bad row instead of a grey picture, and where the official code draws one of several
captions, or a prompt, at random, the row is bad: its feature belongs to one of them, and nobody knows which.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from cache_schema.errors import MismatchError, RefusedError
from cache_schema.layout import Modality
from stages.files.keyed_lines import KeyedLine, keyed_lines, require_line_index
from stages.files.keys import first_repeated, hash_of_key
from stages.files.lines import LineCheck, refuse_nothing
from stages.files.opened import SourceFile, planned_file, read_range
from stages.files.strict_base64 import decoded_base64
from stages.sources.base import MAX_PAYLOAD_BYTES, RawSample, ScannedSource

_MAX_TEXT_BYTES = 1 << 20
_MAX_BASE64_BYTES = (MAX_PAYLOAD_BYTES // 3 + 1) * 4


class DimeFmSource:
    """A TSV of DIME-FM: KEY, tab, base64 of an image file, or captions as JSON or as plain text: `dime-fm:PATH`.

    Captions are `{"captions": [CAPTION]}`, `{"captions": CAPTION}`, the same with `caption`, a list of such objects of
    which the first counts, a JSON string, or whatever else stands there, as it stands. Columns after the second are
    not read.
    """

    kind: ClassVar[str] = "dime-fm"
    modalities: ClassVar[tuple[Modality, ...]] = ("image", "text")
    extensions: ClassVar[tuple[str, ...]] = ()
    option_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options

    def scan(self) -> ScannedSource:
        """Reads the file once for its keys and the places of its lines; a `.lineidx` beside it must agree.

        Raises:
            DamagedError: it has 0 bytes or a hole of zero bytes, is cut, a line has no key, or its `.lineidx` ends
                elsewhere.
            RefusedError: a key stands twice, both places are named; or a carriage return without a line feed.
        """
        offsets, hashes = array("q"), array("Q")
        digest = hashlib.sha256()
        with planned_file(self.uri) as file:
            refuse_nothing(self.uri, file.size_bytes)
            for line in keyed_lines(self.uri, file, check=LineCheck(self.uri)):
                offsets.append(line.offset_bytes)
                hashes.append(hash_of_key(line.key))
                digest.update(f"{line.offset_bytes} {line.value_bytes} {line.key}\n".encode())
        require_line_index(self.uri, offsets[-1])
        starts, key_hashes = np.frombuffer(offsets, np.int64), np.frombuffer(hashes, np.uint64)
        repeated = first_repeated(key_hashes)
        if repeated is not None:
            first, second = repeated
            key = next(iter(self.read(second, 1, int(starts[second])))).key
            raise RefusedError(
                f"{self.uri}: key {key!r} stands in line {first + 1:,} and again in line {second + 1:,}: keys must be "
                "unique; rename one of them"
            )
        return ScannedSource(digest.hexdigest(), len(starts), starts, key_hashes)

    def read(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        """Yields lines from `offset_bytes` on; raises `MismatchError` when the file ends early."""
        if num_samples == 0:
            return
        num_read = 0
        with planned_file(self.uri) as file:
            for line in keyed_lines(self.uri, file, offset_bytes=offset_bytes):
                yield self._sample(file, line)
                num_read += 1
                if num_read == num_samples:
                    return
        raise MismatchError(
            f"{self.uri} holds {first_sample + num_read:,} lines, the plan has more: it changed; restore it"
        )

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns the payload whose column starts at `offset_bytes`; raises `RefusedError` when it is not there."""
        with planned_file(self.uri) as file:
            if self.modality == "image":
                column = read_range(self.uri, file, offset_bytes, -(-size_bytes // 3) * 4)
                payload, problem = _decoded(column)
            else:
                payload, problem = caption_of(_column_at(file, offset_bytes))
        if payload is None or len(payload) != size_bytes:
            seen = problem or f"{len(payload or b'')} bytes"
            raise MismatchError(f"{key!r} in {self.uri} is not the planned one ({seen}): it changed; restore it")
        return payload

    def _sample(self, file: SourceFile, line: KeyedLine) -> RawSample:
        is_image = self.modality == "image"
        if line.value_bytes < 0:
            status = "src-no-image" if is_image else "text-type"
            return RawSample(line.key, None, line.value_offset, 0, status, "no second column")
        if is_image and line.value_bytes > _MAX_BASE64_BYTES:
            reason = f"over {MAX_PAYLOAD_BYTES} bytes"
            return RawSample(line.key, None, line.value_offset, line.value_bytes, "img-too-many-bytes", reason)
        if not is_image and line.value_bytes > _MAX_TEXT_BYTES:
            reason = f"over {_MAX_TEXT_BYTES} bytes"
            return RawSample(line.key, None, line.value_offset, line.value_bytes, "text-too-long", reason)
        column = read_range(self.uri, file, line.value_offset, line.value_bytes)
        offset = line.value_offset + len(column) - len(column.lstrip())
        payload, problem = _decoded(column.strip()) if is_image else caption_of(column)
        if payload is None:
            status = "src-encoding" if is_image else "text-type"
            return RawSample(line.key, None, offset, line.value_bytes, status, problem)
        return RawSample(line.key, payload, offset, len(payload))


def caption_of(column: bytes) -> tuple[bytes | None, str]:
    """Returns the sentence in the second column of a text TSV, as UTF-8; or None and why it has none."""
    text = column.strip()
    if not text.startswith((b"{", b"[", b'"')):
        return text, ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text, ""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        if "captions" not in value and "caption" not in value:
            return None, "a prompt drawn at random" if {"tags", "class_name"} & value.keys() else "no caption"
        value = value["captions"] if "captions" in value else value["caption"]
        if isinstance(value, list) and len(value) > 1:
            return None, "several captions"
        if isinstance(value, list):
            value = value[0] if value else None
    # Half a surrogate pair becomes bytes that are no UTF-8, which the text cleaning then says.
    return (value.encode("utf-8", "surrogatepass"), "") if isinstance(value, str) else (None, "no caption")


def _decoded(column: bytes) -> tuple[bytes | None, str]:
    payload = decoded_base64(column)
    return payload, "not base64" if payload is None else ""


def _column_at(file: SourceFile, offset_bytes: int) -> bytes:
    return file.read_at(offset_bytes, _MAX_TEXT_BYTES).partition(b"\n")[0].partition(b"\t")[0]
