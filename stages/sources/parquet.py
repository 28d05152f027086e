"""Parquet files with a column of image bytes, of paths of image files, or of sentences."""

import base64
import binascii
import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache_schema.errors import DamagedError, MismatchError, RefusedError, UsageError
from cache_schema.layout import Modality
from stages.files.keys import first_repeated, hash_of_key
from stages.files.opened import SourceFile, planned_file, read_range
from stages.files.parquet_file import parquet_of
from stages.images.formats import is_misnamed
from stages.sources.base import MAX_PAYLOAD_BYTES, RawSample, ScannedSource
from stages.sources.entries import TABLE_OPTIONS, resolve_root
from stages.sources.image_files import planned_now, read_image_file, require_root

_MAGIC = b"PAR1"
_BATCH_ROWS = {"image": 64, "text": 8192}
_ARROW_SCHEMA = re.compile(rb"ARROW:schema.{1,8}?(/////[A-Za-z0-9+/]*=*)", re.DOTALL)


class ParquetSource:
    """Rows of a Parquet file.

    Options: `column` (default `image` or `text`), `key_column` (default the row number), `path_column` and `root`.
    An image column holds bytes, or a struct with a field `bytes` (and perhaps `path`), as data sets on the hub do. With
    `path_column` in place of `column` the images are files of their own, below `root` (default the folder of the file).
    Row numbers count from 0. Memory stays at one batch of rows, whatever the size of the row groups' pages allows.
    """

    kind: ClassVar[str] = "parquet"
    modalities: ClassVar[tuple[Modality, ...]] = ("image", "text")
    extensions: ClassVar[tuple[str, ...]] = (".parquet",)
    option_names: ClassVar[tuple[str, ...]] = TABLE_OPTIONS

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None:
        self.uri = uri
        self.modality = modality
        self.options = options
        self.root = resolve_root(uri, modality, options)
        self._value_option = "column" if self.root is None else "path_column"
        self._column = options.get(self._value_option, modality)
        self._key_column = options.get("key_column")
        self._group: tuple[int, pa.Array] | None = None

    def scan(self) -> ScannedSource:
        """Reads the footer, and the key column where there is one.

        Raises:
            RefusedError: it is not Parquet, is cut, lacks a column or has it in an unsupported type (the found ones
                are listed), or a key is missing or repeated.
            UsageError: there is no row, or the root of the paths is no folder.
        """
        state: dict[str, int] = {}
        if self.root is not None:
            require_root(self.root)
            state = planned_now()
        with planned_file(self.uri) as planned:
            footer = self._footer(planned)
            digest = hashlib.sha256(f"{planned.size_bytes}\n".encode() + footer)
            file = self._open(planned)
            num_rows = file.metadata.num_rows
            if num_rows == 0:
                raise UsageError(f"no rows in {self.uri}: leave it out")
            key_hashes = self._scan_keys(file) if self._key_column else np.zeros(0, dtype=np.uint64)
        digest.update(f"\n{self._column}\n{self._key_column}".encode())
        if self.root is not None:
            digest.update(b"\npaths")
        offsets = np.arange(num_rows, dtype=np.int64)
        return ScannedSource(digest.hexdigest(), num_rows, offsets, key_hashes, state=state)

    def read(self, first_sample: int, num_samples: int, offset_bytes: int = 0) -> Iterator[RawSample]:
        """Yields rows; `offset_bytes` is the row number and says nothing new. `MismatchError` when there are fewer."""
        with planned_file(self.uri) as planned:
            file = self._open(planned)
            if first_sample + num_samples > file.metadata.num_rows:
                raise MismatchError(
                    f"{self.uri} has {file.metadata.num_rows:,} rows, the plan needs {first_sample + num_samples:,}: "
                    "it changed; restore it"
                )
            columns = [self._column] + ([self._key_column] if self._key_column else [])
            for row, batch in self._batches(file, first_sample, num_samples, columns):
                values = batch.column(self._column)
                keys = batch.column(self._key_column) if self._key_column else None
                for index in range(len(values)):
                    with _damage_in_words(self.uri):
                        key = str(row + index) if keys is None else _key_text(keys[index].as_py())
                    yield self._sample(key, row + index, values[index])

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns the payload of row `offset_bytes`; the row group around it is kept for the next call."""
        with planned_file(self.uri) as planned:
            file = self._open(planned)
            first = 0
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                if first <= offset_bytes < first + num_rows:
                    sample = self._sample(key, offset_bytes, self._group_values(file, group)[offset_bytes - first])
                    if sample.payload is not None and sample.size_bytes == size_bytes:
                        return sample.payload
                    break
                first += num_rows
        raise MismatchError(f"row {offset_bytes:,} of {self.uri} is not the planned one: the file changed; restore it")

    def _group_values(self, file: pq.ParquetFile, group: int) -> Any:
        if self._group is None or self._group[0] != group:
            self._group = None
            with _damage_in_words(self.uri):
                table = file.read_row_group(group, columns=[self._column], use_threads=False)
                self._group = (group, table.column(self._column))
        return self._group[1]

    def _batches(
        self, file: pq.ParquetFile, first_sample: int, num_samples: int, columns: list[str]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields (row number, rows) covering the range, touching only the row groups that hold it."""
        end = first_sample + num_samples
        first = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if first < end and first + num_rows > first_sample:
                row = first
                size = _BATCH_ROWS[self.modality]
                batches = file.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)
                while True:
                    with _damage_in_words(self.uri):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    low, high = max(first_sample, row), min(end, row + batch.num_rows)
                    if low < high:
                        yield low, batch.slice(low - row, high - low)
                    row += batch.num_rows
                if row != first + num_rows:
                    raise DamagedError(
                        f"{self.uri}: row group {group} has {row - first:,} of its {num_rows:,} rows: it is damaged; "
                        "fetch it again"
                    )
            first += num_rows

    def _sample(self, key: str, row: int, value: pa.Scalar) -> RawSample:
        if self.modality == "text" or self.root is not None:
            try:
                text = value.as_py()
            except UnicodeDecodeError:
                status = "text-encoding" if self.root is None else "src-unreadable"
                return RawSample(key, None, row, 0, status, "not UTF-8")
            return self._text_sample(key, row, text) if self.root is None else self._file_sample(key, row, text)
        path = ""
        if pa.types.is_struct(value.type) and value.is_valid:
            image = value["bytes"].as_py()
            path = _name_in(value)
        else:
            image = value.as_py()
        if image is None:
            return RawSample(key, None, row, 0, "src-no-image", "null")
        if len(image) > MAX_PAYLOAD_BYTES:
            return RawSample(key, None, row, len(image), "img-too-many-bytes", f"over {MAX_PAYLOAD_BYTES} bytes")
        return RawSample(key, image, row, len(image), "ok", "misnamed" if is_misnamed(path, image) else "")

    def _text_sample(self, key: str, row: int, text: str | None) -> RawSample:
        if text is None:
            return RawSample(key, None, row, 0, "text-type", "null")
        payload = text.encode("utf-8")
        return RawSample(key, payload, row, len(payload))

    def _file_sample(self, key: str, row: int, path: str | None) -> RawSample:
        if not path:
            return RawSample(key, None, row, 0, "src-no-image", "null")
        assert self.root is not None
        file = read_image_file(self.root, path)
        return RawSample(key, file.payload, row, file.size_bytes, file.status, file.reason, file.seen)

    def _scan_keys(self, file: pq.ParquetFile) -> np.ndarray:
        assert self._key_column is not None
        hashes = np.zeros(file.metadata.num_rows, dtype=np.uint64)
        for row, batch in self._batches(file, 0, file.metadata.num_rows, [self._key_column]):
            with _damage_in_words(self.uri):
                keys = batch.column(self._key_column).to_pylist()
            for index, key in enumerate(keys):
                if key is None:
                    raise RefusedError(
                        f"{self.uri}: row {row + index:,} has no key in column {self._key_column!r}: fill it in"
                    )
                hashes[row + index] = hash_of_key(_key_text(key))
        repeated = first_repeated(hashes)
        if repeated is not None:
            first, second = repeated
            _, batch = next(self._batches(file, second, 1, [self._key_column]))
            raise RefusedError(
                f"{self.uri}: key {_key_text(batch.column(self._key_column)[0].as_py())!r} stands in row {first:,} and "
                f"again in row {second:,}: keys must be unique; choose another key_column or leave it out"
            )
        return hashes

    def _footer(self, planned: SourceFile) -> bytes:
        """Returns the bytes of the footer; raises `DamagedError` when this is not a whole Parquet file."""
        file_bytes = planned.size_bytes
        tail = planned.read_at(max(0, file_bytes - 8), 8)
        if planned.read_at(0, 4) != _MAGIC:
            raise DamagedError(
                f"{self.uri} is not a Parquet file (no PAR1 at offset 0): name its kind, as in text:PATH"
            )
        footer_bytes = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or footer_bytes + 12 > file_bytes:
            raise DamagedError(
                f"{self.uri} has no footer at its end, at {file_bytes:,} bytes: it is cut; fetch it again"
            )
        return read_range(self.uri, planned, file_bytes - 8 - footer_bytes, footer_bytes)

    def _refuse_extension_types(self, footer: bytes) -> None:
        """Raises `RefusedError` before Arrow may call what is registered, perhaps by pickle, for a type's name."""
        for found in _ARROW_SCHEMA.finditer(footer):
            with contextlib.suppress(binascii.Error):
                if b"ARROW:extension:name" in base64.b64decode(found.group(1)):
                    raise RefusedError(
                        f"{self.uri} has a column of an Arrow extension type, which only the program that defines it "
                        "can read: write it again with plain columns"
                    )

    def _open(self, planned: SourceFile) -> pq.ParquetFile:
        self._refuse_extension_types(self._footer(planned))
        with _damage_in_words(self.uri):
            file = parquet_of(planned)
            schema = file.schema_arrow
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        for column, option in ((self._column, self._value_option), (self._key_column, "key_column")):
            if column is not None and column not in schema.names:
                raise RefusedError(
                    f"{self.uri} has no column {column!r} (found {found}): choose one with ?{option}=NAME"
                )
        kind = schema.field(self._column).type
        wants_text = self.modality == "text" or self.root is not None
        if not (_is_text(kind) if wants_text else _is_image(kind)):
            wanted = "text" if wants_text else "bytes, or a struct with a field 'bytes'"
            raise RefusedError(
                f"{self.uri}: column {self._column!r} is {kind}, not {wanted} (found {found}): "
                f"choose one with ?{self._value_option}=NAME"
            )
        if self._key_column is not None:
            kind = schema.field(self._key_column).type
            if not (_is_text(kind) or pa.types.is_integer(kind)):
                raise RefusedError(
                    f"{self.uri}: key column {self._key_column!r} is {kind}, not text or integer (found {found}): "
                    "choose another key_column or leave it out"
                )
        return file


@contextlib.contextmanager
def _damage_in_words(uri: str) -> Iterator[None]:
    """Turns what pyarrow raises for damaged bytes into `DamagedError`; failures of the disk keep their number."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DamagedError(f"{uri} cannot be decoded as Parquet: it is damaged; fetch it again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedError(f"{uri} cannot be decoded as Parquet: it is damaged; fetch it again") from error


def _name_in(record: pa.StructScalar) -> str:
    """Returns the text in the field `path` of an image's struct, if there is one."""
    if "path" not in record.keys():  # noqa: SIM118
        return ""
    try:
        path = record["path"].as_py()
    except UnicodeDecodeError:
        return ""
    return path if isinstance(path, str) else ""


def _key_text(key: str | int | None) -> str:
    return str(key)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
