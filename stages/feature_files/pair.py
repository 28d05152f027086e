"""A .npy matrix and a Parquet table that tells whose features they are: row i of the one belongs to row i of the other.

Both formats that come in such pairs are built on this; the two must have exactly the same number of rows.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from cache_schema.errors import MismatchError
from cache_schema.layout import Modality
from cache_schema.sha256 import sha256_of
from stages.feature_files.base import FeatureRow, ScannedFeatures, SourceAddress, content_sha256
from stages.feature_files.matrix import matrix_of
from stages.feature_files.table import Table, key_of, unique_key_hashes
from stages.files.opened import planned_file

_STREAM_ROWS = 1024


class MatrixWithTable:
    """The common part of formats that come as such pairs. A format names its table and the columns in it.

    Keys of images stand in the column `key_column`. Sentences have row numbers for keys unless `key_column` is given.
    """

    _default_key_column = "key"
    _default_text_column = "text"

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options
        default = self._default_key_column if modality == "image" else None
        self._key_column = options.get("key_column", default)

    @property
    def table_uri(self) -> str:
        """Path of the Parquet file."""
        raise NotImplementedError

    @property
    def paths(self) -> tuple[str, ...]:
        """The matrix, then the table."""
        return self.uri, self.table_uri

    def scan(self) -> ScannedFeatures:
        """Reads both files once; both without rows are an empty shard.

        Raises:
            RefusedError: see `matrix_of`; a key is missing or stands twice; the table lacks the key column.
            MismatchError: the two have not the same number of rows.
        """
        with planned_file(self.uri) as file:
            matrix = matrix_of(self.uri, file)
            fingerprint = content_sha256(file)
        table = Table(self.table_uri)
        num_keys = table.num_rows()
        if num_keys != matrix.num_rows:
            raise MismatchError(
                f"{self.uri} has {matrix.num_rows:,} rows, {self.table_uri} has {num_keys:,}: rows that belong "
                "together by their position must be as many; fetch both again"
            )
        with planned_file(self.table_uri) as file:
            fingerprint = f"{fingerprint}{content_sha256(file)}"
        places = np.arange(matrix.num_rows, dtype=np.int64)
        return ScannedFeatures(_joined(fingerprint), matrix.dim, places, self._key_hashes(table))

    def stream(self, first_row: int, num_rows: int, place: int) -> Iterator[FeatureRow]:
        """Yields rows; a place is a row number and says nothing new."""
        for first in range(first_row, first_row + num_rows, _STREAM_ROWS):
            yield from self.read(range(first, min(first + _STREAM_ROWS, first_row + num_rows)))

    def read(self, places: Sequence[int]) -> list[FeatureRow]:
        """Returns the rows with these numbers, in the order asked."""
        with planned_file(self.uri) as file:
            matrix = matrix_of(self.uri, file)
            vectors = list(matrix.rows(self.uri, file, places))
        keys = self._keys(places)
        return [FeatureRow(key, values, place) for key, values, place in zip(keys, vectors, places, strict=True)]

    def sentences(self) -> SourceAddress | None:
        """Returns where the column of sentences in the table is."""
        table, column = Table(self.table_uri), self.options.get("text_column", self._default_text_column)
        table.require(column, "text_column")
        keys = {"key_column": self._key_column} if self._key_column else {}
        return SourceAddress(self.table_uri, "parquet", {"column": column, **keys})

    def _keys(self, places: Sequence[int]) -> list[str]:
        if self._key_column is None:
            return [str(place) for place in places]
        found = Table(self.table_uri).take([self._key_column], places)
        if len(found) < len(set(places)):
            raise MismatchError(f"{self.table_uri} lost rows since it was scanned: restore it and run again")
        return [self._named(key_of(found[place][0], self.table_uri, place)) for place in places]

    def _named(self, key: str) -> str:
        return key.removeprefix(self.options.get("prefix", ""))

    def _key_hashes(self, table: Table) -> np.ndarray:
        if self._key_column is None:
            return np.zeros(0, np.uint64)
        return unique_key_hashes(table, self._key_column, named=self._named)


def _joined(digests: str) -> str:
    return sha256_of(digests.encode())
