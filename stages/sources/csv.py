"""CSV and TSV: rows of columns, with quotes around what holds delimiters, quotes or line ends.

Rows are cut from the bytes by a few lines of our own, because a row's place in the file has to be known, and because
the standard library joins everything behind a quote that is never closed into one row without a word. What they make
of a row is what `csv.reader` makes of it.

**Source:** RFC 4180.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, ClassVar

from cache_schema.errors import RefusedError, UsageError, unknown_name
from cache_schema.layout import Modality
from stages.files.compressed import compression_of, content_of, with_compressions
from stages.files.lines import ENCODINGS
from stages.sources.entries import (
    TABLE_OPTIONS,
    BareReturn,
    BrokenEntry,
    Entry,
    EntrySource,
    place_of,
    without_signature,
)
from stages.sources.text import refuse_wide_characters

DELIMITERS = {",": b",", ";": b";", "|": b"|", "tab": b"\t", "\t": b"\t"}
"""As typed -> the byte."""

_PIECE_BYTES = 1 << 20
_QUOTE, _QUOTE_BYTE = b'"', 34
# Where a reader stands in a row.
_AT_FIELD, _IN_FIELD, _IN_QUOTES, _BEHIND_QUOTE, _BEHIND_BLANK, _BROKEN = range(6)
_BLANKS, _LINE_END = b" \t", b"\r\n"
_MIN_SWALLOWED_LINES = {b"\t": 2}
_MIN_SWALLOWED_LINES_ELSE = 8


@dataclass(frozen=True, slots=True)
class _Header:
    """The number of fields of a row, and the places of value and key among them."""

    num_fields: int
    value: int
    key: int | None


class CsvSource(EntrySource):
    """Rows of a CSV or TSV file, plain or compressed.

    Options: those of `EntrySource`; `delimiter` (`,` `;` `|` `tab`), `encoding`, `header=no`, `quotes=no`. The first
    row names the columns; with `header=no` they are named by their number, from 1. With `quotes=no` a quote is a
    character like any other and every line is a row. A row with another number of fields than the first is broken.

    Text behind a closing quote is refused: the quote before it may have been a letter, and what lies between are rows.
    So is a quoted field of several lines each of which would be a row by itself, unless `quotes=yes` says that quotes
    mean something in this file.
    """

    kind: ClassVar[str] = "csv"
    entry_word: ClassVar[str] = "row"
    modalities: ClassVar[tuple[Modality, ...]] = ("image", "text")
    extensions: ClassVar[tuple[str, ...]] = with_compressions(".csv", ".tsv")
    option_names: ClassVar[tuple[str, ...]] = (*TABLE_OPTIONS, "delimiter", "encoding", "header", "quotes")

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        super().__init__(uri, modality, options)
        name = uri.lower().removesuffix(compression_of(uri))
        delimiter = options.get("delimiter", "tab" if name.endswith(".tsv") else ",")
        self._encoding = options.get("encoding", "utf-8")
        for what, value, known in (
            ("delimiter", delimiter, tuple(DELIMITERS)[:4]),
            ("encoding", self._encoding, ENCODINGS),
            ("value of option header", options.get("header", "yes"), ("no", "yes")),
            ("value of option quotes", options.get("quotes", "yes"), ("no", "yes")),
        ):
            if value not in known:
                raise unknown_name(what, value, known)
        self._delimiter = DELIMITERS[delimiter]
        self._has_header = options.get("header", "yes") == "yes"
        self._has_quotes = options.get("quotes", "yes") == "yes"
        self._are_quotes_sure = "quotes" in options
        self._returns_ok = self._has_quotes
        self._header: _Header | None = None
        if not self._has_header:
            if self._value_option not in options:
                raise UsageError(f"{uri} has header=no: name the column by its number, as in ?header=no&column=1")
            for column in filter(None, (self._column, self._key_column)):
                if not column.isdecimal() or not 1 <= int(column) <= 1_000_000:
                    raise UsageError(f"column {column!r} of {uri} is no number, and header=no: count from 1")

    def _settings(self) -> list[str]:
        form = [self._delimiter.decode(), self._encoding, str(self._has_header), str(self._has_quotes)]
        return [self._column, self._key_column or "", *form]

    def _prepare(self) -> None:
        if self._header is None:
            with content_of(self.uri) as content:
                first = next(self._rows(content, 0), None)
            if first is None:
                return
            try:
                names = self._fields(first.data or b"")
            except BrokenEntry as error:
                raise RefusedError(
                    f"{self.uri}: the first row is no header ({error.reason}): mend it, or declare encoding, "
                    "delimiter or header=no"
                ) from None
            if not self._has_header:
                names = [str(number + 1) for number in range(len(names))]
            value = self._place(names, self._column, self._value_option)
            key = self._place(names, self._key_column, "key_column") if self._key_column else None
            self._header = _Header(len(names), value, key)

    def _place(self, names: list[str], column: str, option: str) -> int:
        if names.count(column) != 1:
            found = ", ".join(names[:50])
            how_often = "no" if column not in names else "more than one"
            raise RefusedError(
                f"{self.uri} has {how_often} column {column!r} (found {found}): choose one with ?{option}=NAME; if the "
                f"first row is not a header, write ?header=no&{option}=1"
            )
        return names.index(column)

    def _entries(self, content: BinaryIO, offset_bytes: int, *, line: int = 0) -> Iterator[Entry]:
        rows = self._rows(content, offset_bytes, line=line)
        if offset_bytes == 0 and self._has_header:
            next(rows, None)
        return rows

    def _rows(self, content: BinaryIO, offset_bytes: int, *, line: int = 0) -> Iterator[Entry]:
        while True:
            pieces: list[bytes] = []
            num_bytes = num_kept = num_lines = num_like_rows = 0
            state = _AT_FIELD
            while piece := content.readline(_PIECE_BYTES):
                num_bytes += len(piece)
                is_further = num_lines > 0
                num_lines += piece.endswith(b"\n")
                if num_bytes <= self._max_entry_bytes:
                    pieces.append(piece)
                    num_kept += len(piece)
                if self._has_quotes:
                    state = _advanced(state, piece, self._delimiter)
                    if is_further or state == _IN_QUOTES:
                        num_like_rows += self._is_like_a_row(piece)
                if state == _BROKEN:
                    raise RefusedError(
                        f"{self.uri}: text follows a closing quote {_in_line(line, num_lines, piece)}in the row that "
                        f"starts at {place_of(line, offset_bytes)}: mend that row, or write ?quotes=no if quotes are "
                        "letters in this file"
                    )
                if state != _IN_QUOTES and piece.endswith(b"\n"):
                    break
            if not num_bytes:
                return
            data = b"".join(pieces)
            if offset_bytes == 0:
                refuse_wide_characters(self.uri, data[:4096])
            if state == _IN_QUOTES:
                raise RefusedError(
                    f"{self.uri}: a quote opened in the row at {place_of(line, offset_bytes)} is never "
                    "closed: mend that row, or write ?quotes=no if quotes mean nothing in this file"
                )
            if line and not self._are_quotes_sure and num_like_rows * 10 >= num_lines * 9:
                self._refuse_swallowed(line, num_lines)
            row, start = without_signature(data, offset_bytes)
            yield Entry(start, line, row if num_kept == num_bytes else None)
            offset_bytes += num_bytes
            line += num_lines if line else 0

    def _is_like_a_row(self, piece: bytes) -> bool:
        return self._header is not None and 0 < piece.count(self._delimiter) == self._header.num_fields - 1

    def _refuse_swallowed(self, line: int, num_lines: int) -> None:
        if num_lines >= _MIN_SWALLOWED_LINES.get(self._delimiter, _MIN_SWALLOWED_LINES_ELSE):
            raise RefusedError(
                f"{self.uri}: a quote opened in line {line:,} is closed in line {line + num_lines - 1:,}, and every "
                "line of these would be a row by itself: write ?quotes=no if quotes are letters in this file, or "
                "?quotes=yes if they are right"
            )

    def _values(self, data: bytes) -> tuple[object, object]:
        assert self._header is not None
        fields = self._fields(data)
        if len(fields) != self._header.num_fields:
            raise BrokenEntry("csv", "another number of fields than the first row")
        return fields[self._header.value], None if self._header.key is None else fields[self._header.key]

    def _fields(self, data: bytes) -> list[str]:
        fields = fields_of(data, self._delimiter, has_quotes=self._has_quotes)
        if fields is None:
            raise BareReturn("csv", "carriage return outside quotes")
        try:
            return [field.decode(self._encoding) for field in fields]
        except UnicodeDecodeError:
            raise BrokenEntry("encoding", f"not in {self._encoding}") from None


def fields_of(row: bytes, delimiter: bytes, *, has_quotes: bool = True) -> list[bytes] | None:
    """Returns the fields of one whole row, or None when a carriage return stands where only a line end may."""
    row = row.removesuffix(b"\n").removesuffix(b"\r")
    if not has_quotes:
        return row.split(delimiter)
    if _QUOTE not in row:
        return None if b"\r" in row else row.split(delimiter)
    fields: list[bytes] = []
    at = 0
    while at <= len(row):
        quoted = b""
        if row.startswith(_QUOTE, at):
            quoted, at = _quoted(row, at + 1)
        end = row.find(delimiter, at)
        end = len(row) if end < 0 else end
        if b"\r" in row[at:end]:
            return None
        fields.append(quoted + row[at:end])
        at = end + 1
    return fields


def _quoted(row: bytes, at: int) -> tuple[bytes, int]:
    """Returns what stands in quotes from `at` on, and the place behind the closing quote."""
    pieces: list[bytes] = []
    while (end := row.find(_QUOTE, at)) >= 0:
        pieces.append(row[at:end])
        at = end + 1
        if not row.startswith(_QUOTE, at):
            return b"".join(pieces), at
        pieces.append(_QUOTE)
        at += 1
    return b"".join([*pieces, row[at:]]), len(row)


def _in_line(first_line: int, num_lines: int, piece: bytes) -> str:
    line = first_line + num_lines - piece.endswith(b"\n")
    return f"in line {line:,}, " if first_line else ""


def _advanced(state: int, piece: bytes, delimiter: bytes) -> int:
    """Returns where a reader stands after `piece`, of which only the last byte may be a line feed."""
    if state in (_AT_FIELD, _IN_FIELD) and _QUOTE not in piece:
        return _AT_FIELD if piece.endswith(delimiter) else _IN_FIELD
    at = 0
    while at < len(piece):
        if state == _IN_QUOTES:
            end = piece.find(_QUOTE, at)
            if end < 0:
                return state
            state, at = _BEHIND_QUOTE, end + 1
        elif state == _IN_FIELD:
            end = piece.find(delimiter, at)
            if end < 0:
                return state
            state, at = _AT_FIELD, end + 1
        elif piece.startswith(delimiter, at):
            state, at = _AT_FIELD, at + 1
        elif state != _BEHIND_BLANK and piece[at] == _QUOTE_BYTE:
            state, at = _IN_QUOTES, at + 1
        elif state != _AT_FIELD and piece[at] in _BLANKS:
            state, at = _BEHIND_BLANK, at + 1
        elif state != _AT_FIELD and piece[at] not in _LINE_END:
            return _BROKEN
        else:
            state = _IN_FIELD
    return state
