"""Columns of a Parquet file by row number: keys, and features that are lists of floats."""

import contextlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache_schema.errors import DamagedError, RefusedError
from stages.files.keys import first_repeated, hash_of_key
from stages.files.opened import planned_file
from stages.files.parquet_file import parquet_of

_BATCH_ROWS = 4096


class Table:
    """A Parquet file of which a few columns are read. Opens it anew for every call."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def schema(self) -> tuple[pa.Schema, int]:
        """Returns the schema and the number of rows; raises `DamagedError` when this is no whole Parquet file."""
        with self._opened() as file:
            return file.schema_arrow, file.metadata.num_rows

    def batches(self, columns: Sequence[str], first_row: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields (number of its first row, rows) from `first_row` on, in order."""
        with self._opened() as file:
            first = 0
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                if first + num_rows > first_row:
                    for row, batch in self._batches_of(file, group, first, columns):
                        if row + batch.num_rows > first_row:
                            skip = max(0, first_row - row)
                            yield row + skip, batch.slice(skip)
                first += num_rows

    def take(self, columns: Sequence[str], numbers: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """Returns row number -> Arrow scalars of `columns`; row groups without a wanted row are not read."""
        wanted = sorted(set(numbers))
        found: dict[int, tuple[Any, ...]] = {}
        at, first = 0, 0
        with self._opened() as file:
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if at < len(wanted) and wanted[at] < end:
                    for row, batch in self._batches_of(file, group, first, columns):
                        while at < len(wanted) and wanted[at] < row + batch.num_rows:
                            found[wanted[at]] = tuple(batch.column(name)[wanted[at] - row] for name in columns)
                            at += 1
                        if at == len(wanted) or wanted[at] >= end:
                            break
                first = end
        return found

    def require(self, column: str, option: str) -> pa.DataType:
        """Returns the type of `column`; raises `RefusedError` that lists the columns when it is not there."""
        schema, _ = self.schema()
        if column not in schema.names:
            found = ", ".join(f"{field.name}: {field.type}" for field in schema)
            raise RefusedError(f"{self.uri} has no column {column!r} (found {found}): choose one with ?{option}=NAME")
        return schema.field(column).type

    def _batches_of(
        self, file: pq.ParquetFile, group: int, first: int, columns: Sequence[str]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False)
        row = first
        while True:
            with _in_words(self.uri):
                batch = next(batches, None)
            if batch is None:
                break
            yield row, batch
            row += batch.num_rows
        num_rows = file.metadata.row_group(group).num_rows
        if row - first != num_rows:
            raise DamagedError(
                f"{self.uri} has {row - first:,} rows where its footer says {num_rows:,}: it is damaged; fetch it again"
            )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        with planned_file(self.uri) as planned:
            with _in_words(self.uri):
                file = parquet_of(planned)
            yield file


def require_keys(table: Table, column: str) -> None:
    """Raises `RefusedError` when `column` is not there, or holds neither text nor whole numbers."""
    kind = table.require(column, "key_column")
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_text or pa.types.is_integer(kind)):
        raise RefusedError(
            f"{table.uri}: key column {column!r} is {kind}, not text or whole numbers: choose another one with "
            "?key_column=NAME"
        )


def keys_in(column: pa.Array, uri: str, first_row: int) -> Iterator[str]:
    """Yields the keys of a column, of which the first cell is that of row `first_row`; errors as `key_of`."""
    with _in_words(uri):
        values = column.to_pylist()
    for row, value in enumerate(values, start=first_row):
        yield key_of(value, uri, row)


def key_of(value: Any, uri: str, row: int) -> str:
    """Returns the key that a cell holds; raises `DamagedError` when it holds none."""
    with _in_words(uri):
        key = value.as_py() if isinstance(value, pa.Scalar) else value
    if key is None or key == "":
        raise DamagedError(f"{uri}: row {row:,} has no key: fill it in, or choose another column with ?key_column=NAME")
    return str(key)


def unique_key_hashes(table: Table, column: str, *, named: Callable[[str], str]) -> np.ndarray:
    """Returns the hash of every row's key, uint64, after `named` has made the key from what the cell holds.

    Raises:
        RefusedError: the column cannot hold keys, or a key stands in two rows.
        DamagedError: a row has no key.
    """
    require_keys(table, column)
    hashes = array("Q")
    for row, batch in table.batches([column]):
        hashes.extend(hash_of_key(named(key)) for key in keys_in(batch.column(0), table.uri, row))
    found = np.frombuffer(hashes, np.uint64)
    repeated = first_repeated(found)
    if repeated is not None:
        first, again = repeated
        key = named(key_of(table.take([column], [first])[first][0], table.uri, first))
        raise RefusedError(
            f"{table.uri}: key {key!r} stands in row {first:,} and again in row {again:,}: keys must be unique; choose "
            "another column with ?key_column=NAME"
        )
    return found


@contextlib.contextmanager
def _in_words(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DamagedError(f"{uri} cannot be read as Parquet: it is cut or damaged; fetch it again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedError(f"{uri} cannot be read as Parquet: it is cut or damaged; fetch it again") from error
