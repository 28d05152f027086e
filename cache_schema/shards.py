"""Rows of fixed width in an ordinary Zarr v3 array, one shard per part: written whole, read through a memory map.

Shards are uncompressed (features do not compress), each inner chunk followed by its crc32c, so a row's bytes lie at a
place that the shard's own index tells. A shard is encoded in memory and its bytes published by `atomic.py`. Writing and
reading go around zarr-python only for speed: any Zarr v3 reader sees the same rows.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from cache_schema import atomic
from cache_schema.errors import DamagedError, UnfinishedError, UsageError
from cache_schema.file_state import state_of_file
from cache_schema.json_file import readable_json
from cache_schema.layout import metadata_path, shard_path
from cache_schema.mapped import mapped_file

MAX_CHUNK_ROWS = 1024
_CRC_BYTES = 4
_INDEX_ENTRY_BYTES = 16
DEFAULT_PART_ROWS = 16_384

GROUP_METADATA = readable_json({"zarr_format": 3, "node_type": "group", "attributes": {}})
"""The zarr.json of the group around an array."""


def check_part_rows(part_rows: int) -> int:
    """Returns `part_rows` when parts can have that many rows; raises `UsageError` with the rule otherwise."""
    if part_rows < 1 or (part_rows > MAX_CHUNK_ROWS and part_rows % MAX_CHUNK_ROWS):
        raise UsageError(
            f"part rows {part_rows} cannot be cut into chunks: use at most {MAX_CHUNK_ROWS:,}, "
            f"or a multiple of {MAX_CHUNK_ROWS:,}"
        )
    return part_rows


@dataclass(frozen=True)
class RowFormat:
    """Shape of the shards of one array: `part_rows` rows of `width` little-endian values of `dtype`."""

    part_rows: int
    width: int
    dtype: str

    @property
    def chunk_rows(self) -> int:
        return min(MAX_CHUNK_ROWS, self.part_rows)

    @property
    def num_chunks(self) -> int:
        return self.part_rows // self.chunk_rows

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk without its crc32c."""
        return self.chunk_rows * self.width * np.dtype(self.dtype).itemsize

    @property
    def shard_bytes(self) -> int:
        """Bytes of one shard file; every shard is full, the rows beyond a short part being fill."""
        return self.num_chunks * (self.chunk_bytes + _CRC_BYTES + _INDEX_ENTRY_BYTES) + _CRC_BYTES

    @property
    def fill(self) -> float | int:
        return float("nan") if np.dtype(self.dtype).kind == "f" else -1

    def array_metadata(self, num_rows: int) -> bytes:
        """Returns the zarr.json of an array of `num_rows` rows, as zarr-python 3.1 spells it."""
        little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
        with_crc = [little_endian, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": [self.chunk_rows, self.width],
            "codecs": with_crc,
            "index_codecs": with_crc,
            "index_location": "end",
        }
        grid = {"name": "regular", "configuration": {"chunk_shape": [self.part_rows, self.width]}}
        metadata = {
            "shape": [num_rows, self.width],
            "data_type": self.dtype,
            "chunk_grid": grid,
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN" if np.isnan(self.fill) else self.fill,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
        return json.dumps(metadata, indent=2).encode()

    def encode_shard(self, rows: np.ndarray) -> "EncodedShard":
        """Returns the shard file that holds `rows`, shape (up to part_rows, width), padded with fill.

        The same bytes as zarr-python 3.1 makes, without its detour through an event loop: chunk after chunk, each
        followed by its crc32c, then the index (offset and length of every chunk) and the crc32c of the index.
        """
        assert rows.ndim == 2 and rows.shape[1] == self.width and len(rows) <= self.part_rows, rows.shape
        stride = self.chunk_bytes + _CRC_BYTES
        data = np.empty(self.shard_bytes, np.uint8)
        chunks = data[: self.num_chunks * stride].reshape(self.num_chunks, stride)
        values = chunks[:, : self.chunk_bytes].view(np.dtype(self.dtype).newbyteorder("<"))
        values = values.reshape(self.num_chunks, self.chunk_rows, self.width)
        crcs = []
        for chunk in range(self.num_chunks):
            some = rows[chunk * self.chunk_rows : (chunk + 1) * self.chunk_rows]
            values[chunk, : len(some)] = some
            values[chunk, len(some) :] = self.fill
            crcs.append(google_crc32c.value(chunks[chunk, : self.chunk_bytes]))
        chunks[:, self.chunk_bytes :].view("<u4")[:, 0] = crcs
        index = np.array([[chunk * stride, stride] for chunk in range(self.num_chunks)], "<u8").tobytes()
        end = index + google_crc32c.value(index).to_bytes(_CRC_BYTES, "little")
        data[self.num_chunks * stride :] = np.frombuffer(end, np.uint8)
        return EncodedShard(data.tobytes(), tuple(crcs))


@dataclass(frozen=True)
class EncodedShard:
    """A shard file's bytes, and the crc32c of each chunk in row order, which its record keeps."""

    data: bytes
    chunk_crc32c: tuple[int, ...]


def publish_array(folder: Path, row_format: RowFormat, num_rows: int, *, fence: atomic.Fence | None = None) -> None:
    """Publishes the zarr.json of the array at `folder`, and that of the group around it, for `num_rows` rows."""
    atomic.make_folder(folder / "c")
    for path, metadata in (
        (metadata_path(folder.parent), GROUP_METADATA),
        (metadata_path(folder), row_format.array_metadata(num_rows)),
    ):
        if not path.exists() or path.read_bytes() != metadata:
            atomic.publish_bytes(path, metadata, fence=fence)


def publish_shard(folder: Path, part: int, shard: EncodedShard, *, fence: atomic.Fence | None = None) -> None:
    """Publishes `shard` as that of `part` in the array at `folder`."""
    path = shard_path(folder, part)
    atomic.make_folder(path.parent)
    atomic.publish_bytes(path, shard.data, fence=fence)


RowCheck = Callable[[int, np.ndarray], None]
"""Called with the offset in a part and the rows of one chunk; raises `DamagedError` where they are not the right ones.

The last chunk of a short part goes on with fill.
"""


class RowReader:
    """Reads rows of one array through a memory map of its shards.

    Guarantees: `gather` and `read_part` return exactly what zarr-python returns for the same rows. A part is checked
    once, the first time that one of its rows is read: every chunk's crc32c against the bytes and against the record,
    then its rows by `checks`. A shard that is missing, cut, foreign or changed while open is an error, never fill.

    Args:
        folder: the folder of the Zarr array.
        row_format: the format of its shards.
        num_rows: planned rows, the length of the array.
        commits: for every committed part, the chunk crc32c's that its record keeps.
        checks: returns for a part the function that judges its rows by more than checksums, called once with every
            chunk; None trusts the record.
    """

    def __init__(
        self,
        folder: Path,
        row_format: RowFormat,
        *,
        num_rows: int,
        commits: Mapping[int, tuple[int, ...]],
        checks: Callable[[int], RowCheck] | None = None,
    ) -> None:
        self.folder = folder
        self.row_format = row_format
        self.shape = (num_rows, row_format.width)
        self.dtype = np.dtype(row_format.dtype)
        self._commits = commits
        self._checks = checks
        self._shards: dict[int, _MappedShard] = {}

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Returns the given rows, shape (len(rows), width), in the order asked; rows may repeat.

        Raises:
            UsageError: a row lies outside the array.
            UnfinishedError: a row's part is not committed.
            DamagedError: a shard is not what its record says.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
            raise UsageError(
                f"rows {rows.min()} to {rows.max()} were asked of {self.folder}, which has rows 0 to "
                f"{self.shape[0] - 1}"
            )
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        parts, offsets = np.divmod(rows, self.row_format.part_rows)
        # Sorted once: a batch may lie in more parts than it would pay to look for in all of it.
        order = np.argsort(parts, kind="stable")
        found, starts = np.unique(parts[order], return_index=True)
        for part, places in zip(found.tolist(), np.split(order, starts)[1:], strict=True):
            out[places] = self._shard(part).take(offsets[places])
        return out

    def read_part(self, part: int) -> np.ndarray:
        """Returns the rows of `part` in order, shape (rows of the part within the array, width); errors as `gather`."""
        first = part * self.row_format.part_rows
        return self.gather(np.arange(first, min(first + self.row_format.part_rows, self.shape[0])))

    def _shard(self, part: int) -> "_MappedShard":
        shard = self._shards.get(part)
        if shard is None:
            if part not in self._commits:
                raise UnfinishedError(
                    f"part {part} of {self.folder} is not committed: run `pipeline extract` again to finish the cache"
                )
            shard = _MappedShard(shard_path(self.folder, part), self.row_format, self._commits[part])
            if self._checks is not None:
                shard.require(self._checks(part))
            self._shards[part] = shard
        shard.check_unchanged()
        return shard


class _MappedShard:
    def __init__(self, path: Path, row_format: RowFormat, chunk_crc32c: tuple[int, ...]) -> None:
        self.path = path
        self.row_format = row_format
        mapped = mapped_file(path)
        if mapped is None:
            raise DamagedError(f"shard {path} is missing: run `pipeline verify` to see all damage")
        self._bytes = np.frombuffer(mapped, np.uint8)
        if len(self._bytes) != row_format.shard_bytes:
            raise DamagedError(
                f"shard {path} has {len(self._bytes):,} bytes instead of {row_format.shard_bytes:,}: "
                "run `pipeline verify` to see all damage"
            )
        self._state = state_of_file(path)
        self._offsets = _read_index(self._bytes, row_format, path)
        if len(chunk_crc32c) != row_format.num_chunks:
            raise DamagedError(
                f"the record of shard {path} has checksums of {len(chunk_crc32c)} chunks instead of "
                f"{row_format.num_chunks}: run `pipeline verify` to see all damage"
            )
        for chunk, expected in enumerate(chunk_crc32c):
            self._check_chunk(chunk, expected)

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The chunks as one array (slot, row in chunk, value) over the map, and the slot of every chunk."""
        row_format = self.row_format
        stride = row_format.chunk_bytes + _CRC_BYTES
        itemsize = np.dtype(row_format.dtype).itemsize
        chunks = np.ndarray(
            (row_format.num_chunks, row_format.chunk_rows, row_format.width),
            row_format.dtype,
            buffer=self._bytes,
            strides=(stride, row_format.width * itemsize, itemsize),
        )
        return chunks, self._offsets // stride

    def take(self, offsets: np.ndarray) -> np.ndarray:
        chunk_of, row_of = np.divmod(offsets, self.row_format.chunk_rows)
        chunks, slots = self._rows
        return chunks[slots[chunk_of], row_of]

    def require(self, check: RowCheck) -> None:
        """Calls `check` with every chunk."""
        chunks, slots = self._rows
        for chunk, slot in enumerate(slots):
            check(chunk * self.row_format.chunk_rows, chunks[slot])

    def _check_chunk(self, chunk: int, expected: int) -> None:
        offset = int(self._offsets[chunk])
        data = self._bytes[offset : offset + self.row_format.chunk_bytes]
        actual = google_crc32c.value(data)
        if actual != _stored_crc(self._bytes, offset, self.row_format) or actual != expected:
            raise DamagedError(
                f"chunk {chunk} of shard {self.path} has crc32c {actual:08x}, its record says {expected:08x}: "
                "run `pipeline verify` to see all damage"
            )

    def check_unchanged(self) -> None:
        if state_of_file(self.path) != self._state:
            raise DamagedError(
                f"shard {self.path} changed while it was being read, or is gone: stop whatever writes there"
            )


def _read_index(data: np.ndarray, row_format: RowFormat, where: object) -> np.ndarray:
    """Returns the byte offset of every chunk, from the crc-checked index at the end of a shard."""
    num_chunks = row_format.num_chunks
    stored = int.from_bytes(bytes(data[-_CRC_BYTES:]), "little")
    raw = bytes(data[-_CRC_BYTES - num_chunks * _INDEX_ENTRY_BYTES : -_CRC_BYTES])
    index = np.frombuffer(raw, "<u8").reshape(-1, 2)
    stride = row_format.chunk_bytes + _CRC_BYTES
    places = list(range(0, num_chunks * stride, stride))
    whole = sorted(index[:, 0].tolist()) == places and (index[:, 1] == stride).all()
    if google_crc32c.value(raw) != stored or not whole:
        raise DamagedError(f"the index of shard {where} is damaged: run `pipeline verify` to see all damage")
    return index[:, 0].astype(np.int64)


def _stored_crc(data: Any, offset: int, row_format: RowFormat) -> int:
    start = offset + row_format.chunk_bytes
    return int.from_bytes(bytes(data[start : start + _CRC_BYTES]), "little")
