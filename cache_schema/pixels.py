"""The images once more as small JPEGs, one Arrow file per part, read through a memory map.

Views of the teacher are cut from them, and students train from them, so that both see the same pixels and neither needs
the originals. A row has the digest of the original that it was made from, and the crc32c of its JPEG, which is compared
whenever it is read. What is missing or damaged is an error, never a grey picture.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import pyarrow as pa

from cache_schema import atomic
from cache_schema.errors import DamagedError
from cache_schema.file_state import state_of_file
from cache_schema.json_file import Json, fingerprint_of, read_sealed, seal, typed
from cache_schema.layout import Layout
from cache_schema.mapped import mapped_file, parsed_by_arrow
from cache_schema.samples import DIGEST_BYTES
from cache_schema.sha256 import sha256_of_file

BATCH_ROWS = 1024
SCHEMA = pa.schema(
    [
        pa.field("digest", pa.binary(DIGEST_BYTES)),
        pa.field("crc32c", pa.uint32(), nullable=False),
        pa.field("jpeg", pa.binary()),
    ]
)
VERIFY = "run `pipeline verify` to see all damage"


@dataclass(frozen=True)
class PixelsRecipe:
    """The content of pixels.json.

    Attributes:
        rule: JSON of everything that was asked of the JPEGs: side, quality, subsampling, interpolation.
        decoding: the rules by which bytes became upright pictures.
        probe: SHA-256 over JPEGs of fixed pictures: whoever adds parts makes the same ones first.
        tools: versions of the libraries that the pixels were begun with.
    """

    rule: Mapping[str, Json]
    decoding: Mapping[str, Json]
    probe: str
    tools: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Returns the SHA-256 over what changes pixels, as 64 hexadecimal digits."""
        return fingerprint_of({"rule": self.rule, "decoding": self.decoding, "probe": self.probe})


@dataclass(frozen=True)
class PixelsRecord:
    """The pixels of one part are committed.

    Attributes:
        part: its number.
        num_rows: planned rows of the part.
        num_pictures: how many of them have a JPEG.
        num_bytes: the bytes of the Arrow file.
        sha256: the SHA-256 of the Arrow file.
        fingerprint: the fingerprint of the recipe.
        part_fingerprint: the fingerprint of the part as planned.
    """

    part: int
    num_rows: int
    num_pictures: int
    num_bytes: int
    sha256: str
    fingerprint: str
    part_fingerprint: str


@dataclass(frozen=True)
class PixelRow:
    """One row of an Arrow file: digest of the original (None when it could not be read), JPEG (None for a bad row)."""

    digest: bytes | None
    jpeg: bytes | None


def read_pixels_recipe(layout: Layout) -> PixelsRecipe | None:
    """Returns what pixels.json says, None when there is none; raises `DamagedError` when it is damaged."""
    path = layout.pixels_json
    if not path.exists():
        return None
    value = read_sealed(path)
    try:
        return typed(PixelsRecipe, value)
    except TypeError as error:
        raise DamagedError(f"{path} does not describe pixels ({error}): restore it from a copy") from error


def publish_pixels_recipe(layout: Layout, recipe: PixelsRecipe, *, fence: atomic.Fence | None) -> None:
    """Publishes pixels.json unless it is there."""
    if not layout.pixels_json.exists():
        atomic.make_folder(layout.pixels_json.parent)
        atomic.publish_json(layout.pixels_json, seal(asdict(recipe)), fence=fence)


def commit_pixels(
    layout: Layout,
    recipe: PixelsRecipe,
    part: int,
    rows: Sequence[PixelRow],
    *,
    part_fingerprint: str,
    fence: atomic.Fence | None,
) -> PixelsRecord:
    """Commits the pixels of one part: the Arrow file, then its record. After a crash they are committed or pending.

    Raises:
        EnvironmentProblem, LockedError: as `atomic.publish_bytes`.
    """
    path = layout.pixels(part)
    atomic.make_folder(path.parent)
    written = _Measured()
    atomic.publish_stream(path, lambda file: written.write_arrow(file, rows), fence=fence)
    record = PixelsRecord(
        part=part,
        num_rows=len(rows),
        num_pictures=sum(row.jpeg is not None for row in rows),
        num_bytes=written.num_bytes,
        sha256=written.sha256.hexdigest(),
        fingerprint=recipe.fingerprint,
        part_fingerprint=part_fingerprint,
    )
    atomic.publish_json(layout.pixels_record(part), seal(asdict(record)), fence=fence)
    return record


class _Measured:
    """A file that Arrow writes to, which counts and hashes what passes."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()
        self.closed = False

    def write_arrow(self, file: BinaryIO, rows: Sequence[PixelRow]) -> None:
        self._file = file
        with pa.ipc.new_file(pa.PythonFile(self, mode="w"), SCHEMA) as writer:
            for first in range(0, len(rows), BATCH_ROWS):
                writer.write_batch(_batch_of(rows[first : first + BATCH_ROWS]))

    def write(self, data: bytes | memoryview) -> int:
        self.num_bytes += len(data)
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _batch_of(rows: Sequence[PixelRow]) -> pa.RecordBatch:
    columns = [
        [row.digest for row in rows],
        [google_crc32c.value(row.jpeg or b"") for row in rows],
        [row.jpeg for row in rows],
    ]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def read_pixels_record(layout: Layout, part: int) -> PixelsRecord:
    """Returns the record of the pixels of `part`; raises `DamagedError` when it is missing or damaged."""
    path = layout.pixels_record(part)
    try:
        record = typed(PixelsRecord, read_sealed(path))
    except TypeError as error:
        raise DamagedError(f"{path} is not a record of pixels ({error}): {VERIFY}") from error
    if record.part != part:
        raise DamagedError(f"{path} is the record of part {record.part}: {VERIFY}")
    return record


class PixelsOfPart:
    """The Arrow file of one part, mapped into memory.

    Raises:
        DamagedError: the file is missing, cut or not Arrow.
        EnvironmentProblem: it cannot be mapped now.
    """

    def __init__(self, path: Path, record: PixelsRecord) -> None:
        self.path = path
        self._record = record
        self._batches: dict[int, pa.RecordBatch] = {}
        self._state = state_of_file(path)
        mapped = mapped_file(path)
        with parsed_by_arrow(path, f"pixels {path} are missing or damaged: {VERIFY}"):
            self._file = pa.ipc.open_file(mapped or pa.py_buffer(b""))
        num_batches = -(-record.num_rows // BATCH_ROWS)
        if (
            self._state is None
            or self._state.size_bytes != record.num_bytes
            or not self._file.schema.equals(SCHEMA)
            or self._file.num_record_batches != num_batches
        ):
            raise DamagedError(f"pixels {path} are not those that were committed: {VERIFY}")

    def require_committed(self) -> None:
        """Reads the whole file; raises `DamagedError` when its SHA-256 is not that of the record."""
        if sha256_of_file(self.path) != self._record.sha256:
            raise DamagedError(f"pixels {self.path} are not the pixels that were committed: {VERIFY}")

    def row(self, offset: int) -> PixelRow:
        """Returns one row; raises `DamagedError` when its JPEG is not what was stored."""
        if state_of_file(self.path) != self._state:
            raise DamagedError(
                f"pixels {self.path} changed while they were read, or are gone: stop whatever writes there"
            )
        number, place = divmod(offset, BATCH_ROWS)
        digest, crc32c, stored = self._batch(number).columns
        jpeg = stored[place].as_py()
        if google_crc32c.value(jpeg or b"") != crc32c[place].as_py():
            raise DamagedError(
                f"the picture of row {offset} of pixels {self.path} is not the one that was stored: {VERIFY}"
            )
        return PixelRow(digest[place].as_py(), jpeg)

    def picture(self, offset: int, digest: bytes | None) -> bytes:
        """Returns the JPEG of one row that was made from the original with that `digest`; errors as `row`."""
        found = self.row(offset)
        if found.jpeg is None or found.digest != digest:
            made_from, asked = (value.hex()[:12] if value else "none" for value in (found.digest, digest))
            raise DamagedError(
                f"row {offset} of pixels {self.path} was made from the original {made_from} and has "
                f"{'a' if found.jpeg else 'no'} picture, the cache has original {asked}: {VERIFY}"
            )
        return found.jpeg

    def _batch(self, number: int) -> pa.RecordBatch:
        if number not in self._batches:
            with parsed_by_arrow(self.path, f"rows of pixels {self.path} are damaged: {VERIFY}"):
                batch = self._file.get_batch(number)
                # A damaged offset would otherwise be followed out of the map.
                batch.validate(full=True)
            if batch.num_rows != min(BATCH_ROWS, self._record.num_rows - number * BATCH_ROWS):
                raise DamagedError(f"pixels {self.path} have other rows than their record says: {VERIFY}")
            self._batches[number] = batch
        return self._batches[number]
