"""Parquet files with a column of image bytes, of paths of image files, or of sentences or lists of them."""

import hashlib
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import ClassVar

import numpy as np
import pyarrow as pa

from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError
from cache_schema.layout import Modality
from stages.files.keys import first_repeated, hash_of_key
from stages.files.opened import SourceFile, is_remote, planned_file
from stages.files.parquet_file import ParquetTable, damage_in_words, is_text, key_text, opened_table, words_of
from stages.files.parquet_pages import RowsAtRandom
from stages.images.formats import is_misnamed
from stages.sources.base import MAX_PAYLOAD_BYTES, RawSample, ScannedSource
from stages.sources.entries import TABLE_OPTIONS, resolve_root
from stages.sources.image_files import planned_now, read_image_file, require_root, root_of

_BATCH_ROWS = {"image": 64, "text": 8192}


class ParquetSource:
    """Rows of a Parquet file.

    Options: `column` (default `image` or `text`), `key_column` (default the row number), `path_column` and `root`.
    An image column holds bytes, or a struct with a field `bytes` and perhaps `path`, as Hugging Face writes data sets:
    where the bytes are null, the image is the file at the path. With `path_column` in place of `column` all images are
    files of their own. Paths start from `root`, default the folder of the table. Text is a string or UTF-8 bytes. In a
    column of lists every sentence is a row: the first has the key of its list, further ones the key with `#1`, `#2` …
    behind it; a list without any keeps one row, as `src-no-text`.

    Row numbers count from 0. Memory stays at one batch of rows, as far as the size of the pages allows.
    """

    kind: ClassVar[str] = "parquet"
    modalities: ClassVar[tuple[Modality, ...]] = ("image", "text")
    extensions: ClassVar[tuple[str, ...]] = (".parquet",)
    option_names: ClassVar[tuple[str, ...]] = TABLE_OPTIONS

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options
        self._has_paths = "path_column" in options
        if modality == "image" and not self._has_paths:
            self.root: str | None = root_of(uri, options)
            if "root" in options:
                options["root"] = self.root
        else:
            self.root = resolve_root(uri, modality, options)
        self._value_option = "path_column" if self._has_paths else "column"
        self._column = options.get(self._value_option, modality)
        self._key_column = options.get("key_column")
        self._columns = [self._column, *([self._key_column] if self._key_column else [])]
        self._at_random: RowsAtRandom | None = None
        self._recent: tuple[int, pa.Array] | None = None

    def scan(self) -> ScannedSource:
        """Reads the footer, and the key column where there is one (and lists of sentences that share a key).

        A file without rows has no sample, whatever its columns.

        Raises:
            DamagedError: it is no whole Parquet file.
            RefusedError: it lacks a column, has it twice or in an unsupported type (the found ones are listed), or a
                key is missing or repeated.
            UsageError: the root of the paths is no folder, or there are no paths for it.
        """
        if self.root is not None and (self._has_paths or "root" in self.options):
            require_root(self.root)
        state: dict[str, int] = {}
        with opened_table(self.uri) as table:
            digest = hashlib.sha256(f"{table.size_bytes}\n".encode() + table.footer)
            num_samples, key_hashes = 0, np.zeros(0, dtype=np.uint64)
            if table.num_rows:
                self._require_columns(table)
                num_samples = self._samples_of_groups(table)[-1][1]
                key_hashes = self._scan_keys(table, num_samples) if self._key_column else key_hashes
                state = planned_now() if self._may_have_files(table) else state
        digest.update(f"\n{self._column}\n{self._key_column}".encode())
        if self._has_paths:
            digest.update(b"\npaths")
        offsets = np.arange(num_samples, dtype=np.int64)
        return ScannedSource(digest.hexdigest(), num_samples, offsets, key_hashes, state=state)

    def read(self, first_sample: int, num_samples: int, offset_bytes: int = 0) -> Iterator[RawSample]:
        """Yields samples; `offset_bytes` is their number and says nothing new. `MismatchError` when there are fewer."""
        with opened_table(self.uri) as table:
            self._require_columns(table)
            groups = self._samples_of_groups(table)
            there = groups[-1][1] if groups else 0
            if first_sample + num_samples > there:
                raise MismatchError(
                    f"{self.uri} has {there:,} rows, the plan needs {first_sample + num_samples:,}: it changed; "
                    "restore it"
                )
            for number, cell, key in self._cells(table, first_sample, first_sample + num_samples):
                yield self._sample(key, number, cell)

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns the payload of sample `offset_bytes`; the rows decoded with it are kept for the next call."""
        sample = None
        cell = self._recent_cell(offset_bytes)
        if cell is None:
            with planned_file(self.uri) as file:
                cell = self._cell_of(file, offset_bytes)
        if cell is not None:
            sample = self._sample(key, offset_bytes, cell)
        if sample is None or sample.payload is None or sample.size_bytes != size_bytes:
            raise MismatchError(
                f"row {offset_bytes:,} of {self.uri} is not the planned one: the file changed; restore it"
            )
        return sample.payload

    def _recent_cell(self, number: int) -> pa.Scalar | None:
        if self._recent is None or not 0 <= number - self._recent[0] < len(self._recent[1]):
            return None
        return self._recent[1][number - self._recent[0]]

    def _cell_of(self, file: SourceFile, number: int) -> pa.Scalar | None:
        if self._at_random is None or self._at_random.size_bytes != file.size_bytes:
            table = ParquetTable(self.uri, file)
            self._require_columns(table)
            self._at_random = RowsAtRandom(table, self._column, _fields_of(table.schema.field(self._column).type))
        # Over the network, headers of pages would cost a request each.
        if self._at_random.is_possible and not is_remote(self.uri):
            if not 0 <= number < self._at_random.num_rows:
                return None
            self._recent = self._at_random.around(file, number)
            return self._recent_cell(number)
        table = ParquetTable(self.uri, file)
        if self._is_of_lists(table):
            return next((cell for _, cell, _ in self._cells_of_lists(table, number, number + 1)), None)
        if not 0 <= number < table.num_rows:
            return None
        self._recent = table.rows_around(self._column, number, batch_rows=_BATCH_ROWS[self.modality])
        return self._recent_cell(number)

    def _is_of_lists(self, table: ParquetTable) -> bool:
        return bool(pa.types.is_list(table.schema.field(self._column).type))

    def _may_have_files(self, table: ParquetTable) -> bool:
        kind = table.schema.field(self._column).type
        has_paths = pa.types.is_struct(kind) and _path_field(kind) is not None
        return self._has_paths or (self.modality == "image" and has_paths)

    def _samples_of_groups(self, table: ParquetTable) -> list[tuple[int, int]]:
        """Returns the number of the first sample of every row group, and the one behind its last."""
        if not self._is_of_lists(table):
            return table.groups()
        return list(pairwise(accumulate(table.values_of_groups(self._column), initial=0)))

    def _cells(self, table: ParquetTable, first_sample: int, end_sample: int) -> Iterator[tuple[int, pa.Scalar, str]]:
        """Yields (sample number, what it holds, key) for a range of samples."""
        if self._is_of_lists(table):
            yield from self._cells_of_lists(table, first_sample, end_sample)
            return
        size = _BATCH_ROWS[self.modality]
        for row, batch in table.batches(self._columns, first_row=first_sample, end_row=end_sample, batch_rows=size):
            values = batch.column(self._column)
            for at, key in enumerate(self._keys_in(batch, row)):
                yield row + at, values[at], key

    def _cells_of_lists(
        self, table: ParquetTable, first_sample: int, end_sample: int
    ) -> Iterator[tuple[int, pa.Scalar, str]]:
        for (first_row, end_row), (number, end) in zip(table.groups(), self._samples_of_groups(table), strict=True):
            if number >= end_sample or end <= first_sample:
                continue
            # Which sample a list begins with is known from all lists before it in its group.
            size = _BATCH_ROWS[self.modality]
            for row, batch in table.batches(self._columns, first_row=first_row, end_row=end_row, batch_rows=size):
                lists = batch.column(self._column)
                lengths = np.maximum(1, lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
                first_numbers = number + np.cumsum(lengths) - lengths
                number += int(lengths.sum())
                keys = self._keys_in(batch, row)
                for at in range(int(np.searchsorted(first_numbers + lengths, first_sample, "right")), len(lists)):
                    for element, cell in enumerate(_elements_of(lists[at])):
                        place = int(first_numbers[at]) + element
                        if place >= end_sample:
                            return
                        if place >= first_sample:
                            yield place, cell, f"{keys[at]}#{element}" if element else keys[at]
            if number != end:
                raise DamagedError(
                    f"{self.uri}: the lists of rows {first_row:,} to {end_row - 1:,} hold {number:,} sentences up to "
                    f"there, its footer tells {end:,}: it is damaged; fetch it again"
                )

    def _keys_in(self, batch: pa.RecordBatch, first_row: int) -> list[str]:
        if self._key_column is None:
            return [str(row) for row in range(first_row, first_row + batch.num_rows)]
        with damage_in_words(self.uri):
            keys = [key_text(value) for value in batch.column(self._key_column).to_pylist()]
        if "" in keys:
            row = first_row + keys.index("")
            raise RefusedError(f"{self.uri}: row {row:,} has no key in column {self._key_column!r}: fill it in")
        return keys

    def _sample(self, key: str, number: int, cell: pa.Scalar) -> RawSample:
        if self.modality == "text":
            return _text_sample(key, number, cell)
        if self._has_paths:
            return self._file_sample(key, number, _text_in(cell))
        image, path = cell, None
        if pa.types.is_struct(cell.type) and cell.is_valid:
            image, place = cell["bytes"], _path_field(cell.type)
            path = None if place is None else _text_in(cell[place])
            if not image.is_valid and place is not None:
                return self._file_sample(key, number, path)
        image = image.as_py()
        if image is None:
            return RawSample(key, None, number, 0, "src-no-image", "null")
        if len(image) > MAX_PAYLOAD_BYTES:
            return RawSample(key, None, number, len(image), "img-too-many-bytes", f"over {MAX_PAYLOAD_BYTES} bytes")
        return RawSample(key, image, number, len(image), "ok", "misnamed" if is_misnamed(path or "", image) else "")

    def _file_sample(self, key: str, number: int, path: str | None) -> RawSample:
        if path is None:
            return RawSample(key, None, number, 0, "src-unreadable", "not UTF-8")
        if not path:
            return RawSample(key, None, number, 0, "src-no-image", "null")
        assert self.root is not None
        file = read_image_file(self.root, path)
        return RawSample(key, file.payload, number, file.size_bytes, file.status, file.reason, file.seen)

    def _scan_keys(self, table: ParquetTable, num_samples: int) -> np.ndarray:
        # Whose lists have keys, their lengths have to be known; everybody else's values are not read.
        keys: Iterator[str] = self._keys(table)
        if self._is_of_lists(table):
            keys = (key for _, _, key in self._cells(table, 0, num_samples))
        hashes = np.fromiter((hash_of_key(key) for key in keys), np.uint64, num_samples)
        repeated = first_repeated(hashes)
        if repeated is not None:
            first, second = repeated
            _, _, key = next(self._cells(table, second, second + 1))
            raise RefusedError(
                f"{self.uri}: key {key!r} stands in row {first:,} and again in row {second:,}: keys must be unique; "
                "choose another key_column or leave it out"
            )
        return hashes

    def _keys(self, table: ParquetTable) -> Iterator[str]:
        assert self._key_column is not None
        for row, batch in table.batches([self._key_column], batch_rows=_BATCH_ROWS["text"]):
            yield from self._keys_in(batch, row)

    def _require_columns(self, table: ParquetTable) -> None:
        kind = table.require(self._column, self._value_option)
        if self._has_paths:
            wanted, fits = "text", is_text(kind)
        elif self.modality == "text":
            wanted, fits = (
                "text or a list of texts",
                is_text(kind) or (pa.types.is_list(kind) and is_text(kind.value_type)),
            )
        else:
            wanted, fits = "bytes, or a struct with a field 'bytes'", _is_image(kind)
        if not fits:
            raise RefusedError(
                f"{self.uri}: column {self._column!r} is {words_of(kind)}, not {wanted} (found {table.found()}): "
                f"choose one with ?{self._value_option}=NAME"
            )
        if "root" in self.options and not self._has_paths and _path_field(kind) is None:
            raise UsageError(
                f"root of source {self.uri} is for paths, but column {self._column!r} has none beside its bytes: name "
                "a column of paths with path_column, or drop root"
            )
        if self._key_column is not None:
            table.require_key(self._key_column)


def _elements_of(value: pa.ListScalar) -> list[pa.Scalar]:
    """Returns the elements of a list, or the list itself where it has none."""
    return list(value.values) if value.is_valid and len(value.values) else [value]


def _text_sample(key: str, number: int, cell: pa.Scalar) -> RawSample:
    if not cell.is_valid:
        return RawSample(key, None, number, 0, "text-type", "null")
    if pa.types.is_list(cell.type):
        return RawSample(key, None, number, 0, "src-no-text", "empty list")
    text = _text_in(cell)
    if text is None:
        return RawSample(key, None, number, 0, "text-encoding", "not UTF-8")
    payload = text.encode("utf-8")
    return RawSample(key, payload, number, len(payload))


def _text_in(cell: pa.Scalar) -> str | None:
    """Returns the text of a string or of UTF-8 bytes, empty where it is null, None where it is not UTF-8."""
    try:
        value = cell.as_py()
        return value.decode("utf-8") if isinstance(value, bytes) else value or ""
    except UnicodeDecodeError:
        return None


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return bool(pa.types.is_large_binary(kind))
    # A name that stands twice has no index.
    index = kind.get_field_index("bytes")
    return index >= 0 and bool(pa.types.is_large_binary(kind.field(index).type))


def _fields_of(kind: pa.DataType) -> list[str]:
    """Returns the fields of an image's struct that say where its bytes are, none where it is no struct."""
    if not pa.types.is_struct(kind):
        return []
    return ["bytes"] if _path_field(kind) is None else ["bytes", "path"]


def _path_field(kind: pa.DataType) -> int | None:
    """Returns which field of an image's struct is its path, if one is."""
    index = kind.get_field_index("path") if pa.types.is_struct(kind) else -1
    return index if index >= 0 and is_text(kind.field(index).type) else None
