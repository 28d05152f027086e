"""JSON lines: an object per line, one of its members the sentence or the image."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar

from cache_schema.layout import Modality
from stages.files.compressed import with_compressions
from stages.files.lines import SIGNATURE, read_line
from stages.sources.entries import TABLE_OPTIONS, BrokenEntry, Entry, EntrySource, without_signature
from stages.sources.text import refuse_wide_characters

_NAMES_SHOWN = 20


class JsonlSource(EntrySource):
    """Lines of JSON objects, plain or compressed.

    Options: those of `EntrySource`. A sentence is a string; an image is base64 in a string, or a path. Every line is a
    row, empty ones too. JSON is read strictly: UTF-8, no NaN, no name twice.
    """

    kind: ClassVar[str] = "jsonl"
    entry_word: ClassVar[str] = "line"
    modalities: ClassVar[tuple[Modality, ...]] = ("image", "text")
    extensions: ClassVar[tuple[str, ...]] = with_compressions(".jsonl", ".ndjson")
    option_names: ClassVar[tuple[str, ...]] = TABLE_OPTIONS

    def _prepare(self) -> None:
        pass

    def _settings(self) -> list[str]:
        return [self._column, self._key_column or ""]

    def _entries(self, content: BinaryIO, offset_bytes: int, *, line: int = 0) -> Iterator[Entry]:
        while True:
            data, num_bytes = read_line(content, self._max_entry_bytes + 2)
            if not num_bytes or (offset_bytes == 0 and data == SIGNATURE):
                return
            if offset_bytes == 0:
                refuse_wide_characters(self.uri, data[:4096])
            is_whole = num_bytes == len(data) and num_bytes <= self._max_entry_bytes + 1
            entry, start = without_signature(data, offset_bytes)
            yield Entry(start, line, entry if is_whole else None)
            offset_bytes += num_bytes
            line += bool(line)

    def _values(self, data: bytes) -> tuple[object, object]:
        value = parse_object(data)
        return value.get(self._column), value.get(self._key_column) if self._key_column else None

    def _found(self, data: bytes) -> str:
        value = parse_object(data)
        named = [f"{name}: {type(value[name]).__name__}" for name in list(value)[:_NAMES_SHOWN]]
        return ", ".join(named)


def parse_object(data: bytes) -> dict[str, Any]:
    """Returns the object that strict JSON in UTF-8 holds; raises `BrokenEntry`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_named_once, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise BrokenEntry("encoding", "not UTF-8") from None
    except (ValueError, RecursionError):
        raise BrokenEntry("json", "not JSON") from None
    if not isinstance(value, dict):
        raise BrokenEntry("json", "not an object")
    return value


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name stands twice")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(name)
