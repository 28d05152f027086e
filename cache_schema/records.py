"""The record: a worker's note that one part of one array is committed. Without it the part does not exist."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cache_schema.errors import DamagedError
from cache_schema.json_file import Json, read_sealed, typed

HASH_BYTES = 16
_RECORD_NAME = re.compile(r"\d{5,}\.json")


@dataclass(frozen=True)
class RowException:
    """A remark of one array on a row beyond the sample table: a note ("truncated: 93 tokens") or its own bad status."""

    offset: int
    status: str
    reason: str


@dataclass(frozen=True)
class Record:
    """One committed part of one array.

    Attributes:
        part: its number.
        num_rows: planned rows of the part.
        fingerprint: the fingerprint of the array's recipe.
        part_fingerprint: the fingerprint of the part as planned.
        bad: offsets of the rows without a feature, ascending.
        exceptions: rows on which this array has more to say than the sample table, by offset.
        files: what the part consists of ("shard", "samples", "rows", and "views" of a crop) -> SHA-256.
        chunk_crc32c: of every chunk of the shard, so that reading checks the shard against this record.
        numerics: kind of device and arithmetic that computed the features.
        allow_mixed_numerics: the run that made it was told to go on where parts were computed otherwise. Written only
            where it is true.
        seconds: spent on reading, decoding, the forward pass and writing. The only field that may differ between runs.
    """

    part: int
    num_rows: int
    fingerprint: str
    part_fingerprint: str
    bad: tuple[int, ...]
    exceptions: tuple[RowException, ...]
    files: Mapping[str, str]
    chunk_crc32c: tuple[int, ...]
    numerics: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    allow_mixed_numerics: bool = False

    @property
    def num_ok(self) -> int:
        return self.num_rows - len(self.bad)

    def to_json(self) -> dict[str, Json]:
        """Returns the JSON form; `record_of` is its inverse."""
        value = asdict(self)
        if not self.allow_mixed_numerics:
            del value["allow_mixed_numerics"]
        value["exceptions"] = [[e.offset, e.status, e.reason] for e in self.exceptions]
        return value


def record_of(value: Mapping[str, Json], where: object) -> Record:
    """Returns the record with that JSON form; raises `DamagedError` when it is not one or does not add up."""
    try:
        parts = {
            "bad": _whole_numbers("bad", value["bad"]),
            "exceptions": tuple(_exception_of(*e) for e in value["exceptions"]),
            "files": {name: str(sha256) for name, sha256 in value["files"].items()},
            "chunk_crc32c": _whole_numbers("chunk_crc32c", value["chunk_crc32c"]),
        }
        record = typed(Record, {**value, **parts})
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{where} is not a record ({error}): run `pipeline verify` to see all damage") from error
    if missing := [name for name in ("shard", "samples", "rows") if name not in record.files]:
        raise DamagedError(f"{where} names no file of {', '.join(missing)}: run `pipeline verify` to see all damage")
    for what, offsets in (("bad rows", record.bad), ("exceptions", [e.offset for e in record.exceptions])):
        if not all(0 <= offset < record.num_rows for offset in offsets) or list(offsets) != sorted(set(offsets)):
            raise DamagedError(f"{where} names {what} outside its part: run `pipeline verify` to see all damage")
    return record


def _exception_of(offset: Json, status: Json, reason: Json) -> RowException:
    return typed(RowException, {"offset": offset, "status": status, "reason": reason})


def _whole_numbers(name: str, values: Iterable[Json]) -> tuple[int, ...]:
    found = tuple(values)
    if not all(type(number) is int for number in found):
        raise TypeError(f"{name} is not a list of whole numbers")
    return found


def read_record(path: Path) -> Record:
    """Returns the record at `path`.

    Raises:
        DamagedError: the file is missing or damaged, or is the record of another part.
    """
    record = record_of(read_sealed(path), path)
    if record.part != int(path.stem):
        raise DamagedError(f"{path} is the record of part {record.part}: run `pipeline verify` to see all damage")
    return record


def committed_parts(folder: Path) -> list[int]:
    """Returns the numbers of the parts that have a record in `folder`, ascending; no folder means none."""
    if not folder.is_dir():
        return []
    return sorted(int(name[:-5]) for name in os.listdir(folder) if _RECORD_NAME.fullmatch(name))


def parts_by_numerics(records: Iterable[Record]) -> dict[str, int]:
    """Returns kind of arithmetic -> number of parts computed on it, sorted by kind."""
    return dict(sorted(Counter(record.numerics for record in records).items()))


def row_hash(key: str, status: str, reason: str, digest: bytes | None, feature: bytes) -> bytes:
    """Returns the 16-byte BLAKE2b that stands for one row in the logical digest; `feature` is empty for a bad row.

    Every field is preceded by its length, so that no two different rows spell the same bytes.
    """
    state = hashlib.blake2b(digest_size=HASH_BYTES)
    for value in (key.encode(), status.encode(), reason.encode(), digest or b"", feature):
        state.update(len(value).to_bytes(8, "little"))
        state.update(value)
    return state.digest()


def logical_digest(row_hashes: Iterable[bytes]) -> str:
    """Returns the SHA-256 over the row hashes of all parts, in plan order: the logical digest of an array."""
    state = hashlib.sha256()
    for hashes in row_hashes:
        state.update(hashes)
    return state.hexdigest()


def digests_of_beginnings(row_hashes: Iterable[bytes]) -> Iterator[str]:
    """Yields the logical digest of the first part, of the first two parts, and so on."""
    state = hashlib.sha256()
    for hashes in row_hashes:
        state.update(hashes)
        yield state.hexdigest()
