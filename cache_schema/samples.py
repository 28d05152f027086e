"""The sample table of a part: what is true of each sample alone, whatever teacher looks at it."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cache_schema.errors import DamagedError
from cache_schema.layout import Modality
from cache_schema.mapped import mapped_file, parsed_by_arrow
from cache_schema.sha256 import sha256_of

OK = "ok"
DIGEST_BYTES = 16

_SHARED = [
    pa.field("row", pa.int64(), nullable=False),
    pa.field("key", pa.large_string(), nullable=False),
    pa.field("source", pa.int32(), nullable=False),
    pa.field("offset_bytes", pa.int64(), nullable=False),
    pa.field("size_bytes", pa.int64(), nullable=False),
    pa.field("digest", pa.binary(DIGEST_BYTES)),
    pa.field("status", pa.large_string(), nullable=False),
    pa.field("reason", pa.large_string(), nullable=False),
]
SCHEMAS: dict[Modality, pa.Schema] = {
    "image": pa.schema([*_SHARED, pa.field("width", pa.int32()), pa.field("height", pa.int32())]),
    "text": pa.schema([*_SHARED, pa.field("text", pa.large_string())]),
}
"""The columns of a sample table in memory. Letters are `large_string`, whose arrays have no limit of 2 GiB.

On disk a table says `string` as long as every column is below that limit, and `large_string` beyond.
"""

_MOST_BYTES_OF_STRINGS = 2**31 - 1


@dataclass(frozen=True)
class Sample:
    """One row of a sample table.

    Attributes:
        row: its number in the row space of its modality.
        key: the sample's name inside its source.
        source: place in the plan's list of sources.
        offset_bytes: where the payload starts in the source, in the unit of its kind.
        size_bytes: the bytes of the payload.
        digest: 16-byte BLAKE2b of the payload; None when it could not be read.
        status: "ok", or why the sample can have no feature ("img-truncated", "text-empty", …).
        reason: a few fixed words on a bad status, or notes on an ok row ("tiny"). Never a path, time or address: it
            enters the logical digest.
        width: pixels of the upright image.
        height: pixels of the upright image.
        text: the cleaned sentence, exactly as the teacher gets it; None for bad rows.
    """

    row: int
    key: str
    source: int
    offset_bytes: int
    size_bytes: int
    digest: bytes | None
    status: str
    reason: str
    width: int | None = None
    height: int | None = None
    text: str | None = None


@dataclass(frozen=True)
class ImageLocation:
    """The place of the original bytes of an image row, and their digest."""

    uri: str
    kind: str
    options: dict[str, str]
    key: str
    offset_bytes: int
    size_bytes: int
    digest: bytes
    width: int
    height: int


def digest_of(payload: bytes) -> bytes:
    """Returns the 16-byte BLAKE2b of a sample's payload."""
    return hashlib.blake2b(payload, digest_size=DIGEST_BYTES).digest()


def table_of(samples: Sequence[Sample], modality: Modality) -> pa.Table:
    """Returns the Arrow table of `samples`, with the schema of their modality."""
    schema = SCHEMAS[modality]
    names = {f.name for f in fields(Sample)}
    assert names >= set(schema.names)
    return pa.table({name: [getattr(s, name) for s in samples] for name in schema.names}, schema=schema)


def encode_table(table: pa.Table, *, most_bytes_of_strings: int = _MOST_BYTES_OF_STRINGS) -> bytes:
    """Returns the Parquet file of a sample table. Equal tables give equal bytes under one pyarrow version.

    Args:
        table: as `table_of` gives it.
        most_bytes_of_strings: a column of more letters, and with it all of them, is written as `large_string`.
    """
    # Records keep the SHA-256 of a table: one that always could be written keeps the bytes that it always had.
    if all(column.nbytes <= most_bytes_of_strings for column in table.columns):
        table = table.cast(_with_short_strings(table.schema))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_table(
    path: Path, modality: Modality, columns: Sequence[str] | None = None, *, sha256: str | None = None
) -> pa.Table:
    """Returns the sample table at `path`, or some of its columns; `sha256` is what the file was committed with.

    Raises:
        DamagedError: the file is missing, damaged, not the one that was committed, or has another schema.
        EnvironmentProblem: it cannot be read now.
    """
    schema = SCHEMAS[modality]
    data = mapped_file(path)
    if sha256 is not None and (data is None or sha256_of(memoryview(data)) != sha256):
        raise DamagedError(f"sample table {path} is not the one that was committed: run `pipeline verify`")
    with parsed_by_arrow(path, f"sample table {path} is missing or damaged: run `pipeline verify` to see all"):
        table = pq.read_table(pa.BufferReader(data or b""), columns=list(columns) if columns else None)
    expected = pa.schema([schema.field(name) for name in columns]) if columns else schema
    if table.schema.equals(expected):
        return table
    if not table.schema.equals(_with_short_strings(expected)):
        raise DamagedError(f"sample table {path} has columns {table.schema.names}, expected {expected.names}")
    return table.cast(expected)


def _with_short_strings(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in schema]
    )
