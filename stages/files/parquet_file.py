"""Parquet files that others wrote, opened with care: by one thread, without running what their types name.

A Parquet file may carry the Arrow schema of its writer, and that may name extension types, whose registered classes
pyarrow calls with bytes from the file (some unpickle them). So pyarrow never sees that schema: columns have the types
that Parquet itself knows, which for an extension type are those of its storage.
"""

import base64
import contextlib
from binascii import Error as NotBase64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from cache_schema.errors import DamagedError, RefusedError
from stages.files import compact_thrift
from stages.files.opened import SourceFile, planned_file, read_range

_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
# In place of names that pyarrow acts upon, of their lengths, so that whatever holds them stays whole.
_SCHEMA, _HIDDEN_SCHEMA = b"ARROW:schema", b"hidden-types"
_EXTENSION, _HIDDEN_EXTENSION = b"ARROW:extension:name", b"hidden-extension-tag"
_OF_ARROW = (
    "arrow.bool8",
    "arrow.fixed_shape_tensor",
    "arrow.json",
    "arrow.opaque",
    "arrow.parquet.variant",
    "arrow.timestamp_with_offset",
    "arrow.uuid",
    "arrow.variable_shape_tensor",
)
_BATCH_BYTES = 64 << 20
_COLUMNS_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column in one row group: the number of its compression, how many values it has, and where its pages start."""

    codec: int
    num_values: int
    offset: int


class ParquetTable:
    """An open Parquet file. Text and bytes come as Arrow's large types, so that no row group is too long for them.

    Attributes:
        uri: of the file, for messages.
        size_bytes: of the file.
        footer: its bytes as they stand in the file.
        num_rows: rows of all row groups.
        schema: of what `batches` yields.
        metadata: what the footer says.
    """

    def __init__(self, uri: str, file: SourceFile) -> None:
        self.uri = uri
        self.size_bytes = file.size_bytes
        self.footer = _footer_of(uri, file)
        with damage_in_words(uri):
            self.metadata = _metadata_of(self.footer)
            # With `pre_buffer`, the default, a thread of Arrow reads the stream and may be the last to let go of it.
            # Where the interpreter ends meanwhile, as after a refusal, pyarrow 26.0.1 aborts the process
            # (apache/arrow#34314). A stream of its own, because whoever closes the one does not close the other.
            self._file = pq.ParquetFile(
                file.stream(),
                metadata=self.metadata,
                pre_buffer=False,
                binary_type=pa.large_binary(),
                arrow_extensions_enabled=False,
                page_checksum_verification=True,
            )
            self.schema = self._file.schema_arrow
            self._extensions = _extensions_of(self.metadata)
        self.num_rows = self.metadata.num_rows
        in_groups = sum(end - first for first, end in self.groups())
        if in_groups != self.num_rows:
            raise DamagedError(
                f"{uri} has {self.num_rows:,} rows by its footer and {in_groups:,} in its row groups: it is damaged; "
                "fetch it again"
            )

    def found(self) -> str:
        """Returns the names and types of the columns, for messages."""
        columns = [f"{field.name}: {words_of(field.type)}" for field in self.schema]
        more = len(columns) - _COLUMNS_SHOWN
        return ", ".join(columns[:_COLUMNS_SHOWN]) + (f" and {more:,} more" if more > 0 else "")

    def require(self, column: str, option: str) -> pa.DataType:
        """Returns the type of `column`, which the user chose by `option`: of its storage, for Arrow's own extensions.

        Raises:
            RefusedError: there is none of that name, or several, or its type belongs to another program; lists what is
                there.
        """
        places = [str(place) for place, name in enumerate(self.schema.names, start=1) if name == column]
        choose = f"choose one with ?{option}=NAME"
        if not places:
            raise RefusedError(f"{self.uri} has no column {column!r} (found {self.found()}): {choose}")
        if len(places) > 1:
            raise RefusedError(
                f"{self.uri} has {len(places)} columns {column!r}, at places {' and '.join(places)} of "
                f"{len(self.schema)} (found {self.found()}): nobody can tell which is meant; rename them, or {choose}"
            )
        foreign = sorted(self._extensions.get(column, set()).difference(_OF_ARROW))
        if foreign:
            raise RefusedError(
                f"{self.uri}: column {column!r} is of the extension type {foreign[0]!r}, which only the program that "
                f"defines it can read: write it as a plain column, or {choose}"
            )
        return self.schema.field(column).type

    def require_key(self, column: str) -> None:
        """Raises `RefusedError` as `require`, or when `column` holds neither text, nor whole numbers, nor UUIDs."""
        kind = self.require(column, "key_column")
        if not (pa.types.is_large_string(kind) or pa.types.is_integer(kind) or self._is_uuid(column)):
            raise RefusedError(
                f"{self.uri}: key column {column!r} is {words_of(kind)}, not text or whole numbers (found "
                f"{self.found()}): choose another one with ?key_column=NAME, or leave it out"
            )

    def leaves(self) -> list[str]:
        """Returns the paths of the columns without children, in their order in the file."""
        return [self.metadata.schema.column(leaf).path for leaf in range(self.metadata.num_columns)]

    def values_of_groups(self, column: str) -> list[int]:
        """Returns per row group how many values a column has: a list has one per element, or one if it has none.

        Only for columns whose type has one leaf, such as lists of sentences. Raises `DamagedError` as `chunks_of`.
        """
        # Old writers repeat the column itself.
        leaf = next(at for at, path in enumerate(self.leaves()) if path == column or path.startswith(f"{column}."))
        return [chunk.num_values for chunk in self.chunks_of(leaf)]

    def chunks_of(self, leaf: int) -> list[Chunk]:
        """Returns what the footer says of one leaf in every row group; raises `DamagedError` when that is nonsense."""
        try:
            told = [group[1][leaf][3] for group in self._row_groups]
            chunks = [Chunk(one[4], one[5], min(one[9], one.get(11) or one[9])) for one in told]
            valid = all(min(chunk.codec, chunk.num_values, chunk.offset) >= 0 for chunk in chunks)
        except (IndexError, KeyError, TypeError, ValueError):
            valid = False
        if not valid or len(chunks) != self.metadata.num_row_groups:
            raise DamagedError(f"{self.uri} has a footer that contradicts itself: it is damaged; fetch it again")
        return chunks

    @cached_property
    def _row_groups(self) -> list[compact_thrift.Struct]:
        # Not from `metadata`: asked for a column whose chunk is damaged, pyarrow 26.0.1 aborts the process.
        row_groups: list[compact_thrift.Struct] = compact_thrift.read_struct(self.footer, 0)[0][4]
        return row_groups

    def groups(self) -> list[tuple[int, int]]:
        """Returns the first row of every row group, and the row behind its last."""
        rows = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
        return list(pairwise(accumulate(rows, initial=0)))

    def batches(
        self, columns: Sequence[str], *, first_row: int = 0, end_row: int | None = None, batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields (number of its first row, rows) from `first_row` up to `end_row`, default the end, in order.

        Row groups without such a row are not read. A batch has at most `batch_rows` rows, fewer where they are large.

        Raises:
            DamagedError: bytes cannot be decoded, a page has another checksum than the file says, or rows are missing.
        """
        end_row = self.num_rows if end_row is None else end_row
        for group, (first, end) in enumerate(self.groups()):
            if first < end_row and end > first_row:
                yield from self._batches_of(group, first, columns, max(first, first_row), min(end, end_row), batch_rows)

    def rows_around(self, column: str, row: int, *, batch_rows: int) -> tuple[int, pa.Array]:
        """Returns the number of the first of some neighbouring rows, and what `column` holds in them, `row` among them.

        Raises:
            DamagedError: as `batches`.
        """
        for group, (first, end) in enumerate(self.groups()):
            if first <= row < end:
                for start, batch in self._decoded(group, first, [column], row + 1, batch_rows):
                    if row < start + batch.num_rows:
                        return start, batch.column(column)
        raise AssertionError(f"row {row} is not in {self.uri}")

    def _batches_of(
        self, group: int, row: int, columns: Sequence[str], first_row: int, end_row: int, batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields the rows of one group, which starts at `row`, that lie in the range."""
        for start, batch in self._decoded(group, row, columns, end_row, batch_rows):
            low, high = max(first_row, start), min(end_row, start + batch.num_rows)
            if low < high:
                yield low, batch.slice(low - start, high - low)

    def _decoded(
        self, group: int, row: int, columns: Sequence[str], end_row: int, batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields whole batches from the start of a group, at `row`, until one reaches `end_row`."""
        about = self.metadata.row_group(group)
        size = max(1, min(batch_rows, _BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
        batches = self._file.iter_batches(size, row_groups=[group], columns=list(columns), use_threads=False)
        while row < end_row:
            with damage_in_words(self.uri):
                batch = next(batches, None)
            if batch is None:
                raise DamagedError(
                    f"{self.uri}: row group {group} ends at row {row:,}, before row {end_row:,} that its footer tells: "
                    "it is damaged; fetch it again"
                )
            yield row, batch
            row += batch.num_rows

    def _is_uuid(self, column: str) -> bool:
        leaves = (self.metadata.schema.column(at) for at in range(self.metadata.num_columns))
        of_parquet = any(leaf.path == column and leaf.logical_type.type == "UUID" for leaf in leaves)
        return of_parquet or self._extensions.get(column) == {"arrow.uuid"}


@contextlib.contextmanager
def opened_table(uri: str) -> Iterator[ParquetTable]:
    """Opens the Parquet file at `uri` for reading.

    Raises:
        DamagedError: it is empty, no Parquet file, cut, or its footer cannot be read.
        RefusedError: it is encrypted. Otherwise as `planned_file`.
    """
    with planned_file(uri) as file:
        yield ParquetTable(uri, file)


@contextlib.contextmanager
def damage_in_words(uri: str) -> Iterator[None]:
    """Turns what pyarrow raises for damaged bytes into `DamagedError`; failures of the disk keep their number."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, NotBase64) as error:
        raise DamagedError(f"{uri} cannot be decoded as Parquet: it is damaged; fetch it again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedError(f"{uri} cannot be decoded as Parquet: it is damaged; fetch it again") from error


def words_of(kind: pa.DataType) -> str:
    """Returns a type as people know it: whether offsets are large is how we read, not what the file has."""
    return str(kind).replace("large_", "")


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a column can hold text: strings, or bytes, which some writers mark as nothing more."""
    return bool(pa.types.is_large_string(kind) or pa.types.is_large_binary(kind))


def key_text(value: Any) -> str:
    """Returns the key that a cell of a key column holds, of which UUIDs come as bytes; empty where there is none."""
    if isinstance(value, bytes):
        return str(UUID(bytes=value))
    return "" if value is None else str(value)


def _footer_of(uri: str, file: SourceFile) -> bytes:
    if file.size_bytes == 0:
        raise DamagedError(f"{uri} is empty (0 bytes), not a Parquet file: fetch it again, or leave it out")
    tail = file.read_at(max(0, file.size_bytes - 8), 8)
    if _ENCRYPTED in (file.read_at(0, 4), tail[4:]):
        raise RefusedError(f"{uri} is an encrypted Parquet file: write it again without encryption")
    if file.read_at(0, 4) != _MAGIC:
        raise DamagedError(f"{uri} is not a Parquet file (no PAR1 at offset 0): name its kind, as in text:PATH")
    footer_bytes = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or footer_bytes + 12 > file.size_bytes:
        raise DamagedError(f"{uri} has no footer at its end, at {file.size_bytes:,} bytes: it is cut; fetch it again")
    return read_range(uri, file, file.size_bytes - 8 - footer_bytes, footer_bytes)


def _metadata_of(footer: bytes) -> pq.FileMetaData:
    hidden = footer.replace(_SCHEMA, _HIDDEN_SCHEMA)
    alone = pa.BufferReader(_MAGIC + hidden + len(hidden).to_bytes(4, "little") + _MAGIC)
    # Parquet's own types name extensions too (JSON, geometry), whose classes somebody may have registered.
    return pq.ParquetFile(alone, pre_buffer=False, arrow_extensions_enabled=False).metadata


def _extensions_of(metadata: pq.FileMetaData) -> dict[str, set[str]]:
    """Returns column -> names of the extension types anywhere in it, by the Arrow schema of the writer."""
    encoded = (metadata.metadata or {}).get(_HIDDEN_SCHEMA)
    schema = b"" if encoded is None else base64.b64decode(encoded)
    if _EXTENSION not in schema:
        return {}
    fields = pa.ipc.read_schema(pa.BufferReader(schema.replace(_EXTENSION, _HIDDEN_EXTENSION)))
    found: dict[str, set[str]] = {}
    for field in fields:
        found.setdefault(field.name, set()).update(_names_in(field))
    return found


def _names_in(field: pa.Field) -> Iterator[str]:
    name = (field.metadata or {}).get(_HIDDEN_EXTENSION)
    if name is not None:
        yield name.decode("utf-8", "backslashreplace")
    for at in range(field.type.num_fields):
        yield from _names_in(field.type.field(at))
