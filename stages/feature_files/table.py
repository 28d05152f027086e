"""Columns of a Parquet file by row number: keys, and features that are lists of floats."""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cache_schema.errors import DamagedError, RefusedError
from stages.files.keys import first_repeated, hash_of_key
from stages.files.parquet_file import ParquetTable, damage_in_words, key_text, opened_table

_BATCH_ROWS = 4096


class Table:
    """A Parquet file of which a few columns are read. Opens it anew for every call; errors as `opened_table`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def num_rows(self) -> int:
        """Returns the number of rows."""
        with opened_table(self.uri) as table:
            return table.num_rows

    def require(self, column: str, option: str) -> pa.DataType:
        """Returns the type of `column`; raises `RefusedError` as `ParquetTable.require`."""
        with opened_table(self.uri) as table:
            return table.require(column, option)

    def require_key(self, column: str) -> None:
        """Raises `RefusedError` as `ParquetTable.require_key`."""
        with opened_table(self.uri) as table:
            table.require_key(column)

    def batches(self, columns: Sequence[str], first_row: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields (number of its first row, rows) from `first_row` on, in order."""
        with opened_table(self.uri) as table:
            yield from table.batches(columns, first_row=first_row, batch_rows=_BATCH_ROWS)

    def take(self, columns: Sequence[str], numbers: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """Returns row number -> Arrow scalars of `columns`; row groups without a wanted row are not read."""
        wanted = sorted(set(numbers))
        found: dict[int, tuple[Any, ...]] = {}
        with opened_table(self.uri) as table:
            for first, end in table.groups():
                of_group = wanted[bisect_left(wanted, first) : bisect_left(wanted, end)]
                if of_group:
                    found |= self._taken(table, columns, of_group)
        return found

    def _taken(
        self, table: ParquetTable, columns: Sequence[str], wanted: Sequence[int]
    ) -> Iterator[tuple[int, tuple[Any, ...]]]:
        rows = table.batches(columns, first_row=wanted[0], end_row=wanted[-1] + 1, batch_rows=_BATCH_ROWS)
        for row, batch in rows:
            for number in wanted[bisect_left(wanted, row) : bisect_left(wanted, row + batch.num_rows)]:
                yield number, tuple(batch.column(name)[number - row] for name in columns)


def keys_in(column: pa.Array, uri: str, first_row: int) -> Iterator[str]:
    """Yields the keys of a column, of which the first cell is that of row `first_row`; errors as `key_of`."""
    with damage_in_words(uri):
        values = column.to_pylist()
    for row, value in enumerate(values, start=first_row):
        yield key_of(value, uri, row)


def key_of(value: Any, uri: str, row: int) -> str:
    """Returns the key that a cell holds; raises `DamagedError` when it holds none."""
    with damage_in_words(uri):
        key = key_text(value.as_py() if isinstance(value, pa.Scalar) else value)
    if not key:
        raise DamagedError(f"{uri}: row {row:,} has no key: fill it in, or choose another column with ?key_column=NAME")
    return key


def unique_key_hashes(table: Table, column: str, *, named: Callable[[str], str]) -> np.ndarray:
    """Returns the hash of every row's key, uint64, after `named` has made the key from what the cell holds.

    Raises:
        RefusedError: the column cannot hold keys, or a key stands in two rows.
        DamagedError: a row has no key.
    """
    table.require_key(column)
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
