"""Keys and features in one table: `parquet:FEATURES.parquet`, with columns `key`, `embedding` and perhaps `text`."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from cache_schema.errors import MismatchError, RefusedError
from cache_schema.layout import Modality
from stages.feature_files.base import FEATURE_TYPE, MAX_DIM, FeatureRow, ScannedFeatures, SourceAddress, content_sha256
from stages.feature_files.table import Table, key_of, unique_key_hashes
from stages.files.opened import planned_file
from stages.files.parquet_file import words_of

_WIDTH_FROM_ROWS = 1024


class ParquetFeatures:
    """A column of lists of floats. Options: `column` (embedding), `key_column`, `text_column` (text) and `prefix`."""

    format: ClassVar[str] = "parquet"
    extensions: ClassVar[tuple[str, ...]] = (".parquet",)
    option_names: ClassVar[tuple[str, ...]] = ("column", "key_column", "text_column", "prefix")

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options
        self._column = options.get("column", "embedding")
        self._key_column = options.get("key_column", "key" if modality == "image" else None)
        self._columns = [self._column, *([self._key_column] if self._key_column else [])]

    @classmethod
    def expand(cls, path: str, modality: Modality, options: dict[str, str]) -> list[Self]:
        """Returns the one file at `path`."""
        return [cls(path, modality, options)]

    @property
    def paths(self) -> tuple[str, ...]:
        """The file itself."""
        return (self.uri,)

    def scan(self) -> ScannedFeatures:
        """Reads the file once; one without rows is an empty shard.

        Raises:
            RefusedError: the columns are missing or of other types, lists are of other widths, or keys repeat.
        """
        table = Table(self.uri)
        kind = table.require(self._column, "column")
        num_rows = table.num_rows()
        # A column without values has no type for many a writer.
        if not _is_vector(kind) and (num_rows or not pa.types.is_null(kind)):
            raise RefusedError(
                f"{self.uri}: column {self._column!r} is {words_of(kind)}, not a list of float16, float32 or float64: "
                "choose another one with ?column=NAME"
            )
        with planned_file(self.uri) as file:
            fingerprint = content_sha256(file)
        places = np.arange(num_rows, dtype=np.int64)
        if not num_rows:
            if self._key_column:
                table.require(self._key_column, "key_column")
            return ScannedFeatures(fingerprint, 0, places, np.zeros(0, np.uint64))
        return ScannedFeatures(fingerprint, self._dim(table), places, self._key_hashes(table))

    def stream(self, first_row: int, num_rows: int, place: int) -> Iterator[FeatureRow]:
        """Yields rows; a place is a row number and says nothing new."""
        end = first_row + num_rows
        for row, batch in Table(self.uri).batches(self._columns, first_row):
            for at in range(min(batch.num_rows, end - row)):
                yield self._row(row + at, tuple(batch.column(name)[at] for name in self._columns))
            if row + batch.num_rows >= end:
                return

    def read(self, places: Sequence[int]) -> list[FeatureRow]:
        """Returns the rows with these numbers, in the order asked."""
        found = Table(self.uri).take(self._columns, places)
        if len(found) < len(set(places)):
            raise MismatchError(f"{self.uri} lost rows since it was scanned: restore it and run again")
        return [self._row(place, found[place]) for place in places]

    def sentences(self) -> SourceAddress | None:
        """Returns where the column of sentences is."""
        column = self.options.get("text_column", "text")
        Table(self.uri).require(column, "text_column")
        keys = {"key_column": self._key_column} if self._key_column else {}
        return SourceAddress(self.uri, "parquet", {"column": column, **keys})

    def _row(self, row: int, cells: tuple[Any, ...]) -> FeatureRow:
        key = self._named(key_of(cells[1], self.uri, row)) if self._key_column else str(row)
        if not cells[0].is_valid:
            return FeatureRow(key, None, row, FEATURE_TYPE, "null")
        return FeatureRow(key, cells[0].values.to_numpy(zero_copy_only=False), row)

    def _named(self, key: str) -> str:
        return key.removeprefix(self.options.get("prefix", ""))

    def _dim(self, table: Table) -> int:
        dim = 0
        for _, batch in table.batches([self._column]):
            if widths := [len(cell) for cell in batch.column(0)[:_WIDTH_FROM_ROWS] if cell.is_valid]:
                dim = max(set(widths), key=widths.count)
                break
        if not 1 <= dim <= MAX_DIM:
            raise RefusedError(
                f"{self.uri}: column {self._column!r} holds vectors of width {dim}, not 1 to {MAX_DIM:,}: "
                "choose another one with ?column=NAME"
            )
        return dim

    def _key_hashes(self, table: Table) -> np.ndarray:
        if self._key_column is None:
            return np.zeros(0, np.uint64)
        return unique_key_hashes(table, self._key_column, named=self._named)


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and pa.types.is_floating(kind.value_type))
