"""The interface of every format of features: a scan of keys and width, and rows by their places."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np

from cache_schema.layout import Modality
from stages.files.opened import SourceFile

MAX_DIM = 65_536

FEATURE_ENCODING = "feature-encoding"
FEATURE_TYPE = "feature-type"

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, eq=False)
class FeatureRow:
    """One feature as it stands in its file.

    Attributes:
        key: the key of the sample it belongs to; the row number where the file has no keys.
        values: the vector in the file's own float type, any norm; None exactly when `status` is not `ok`.
        place: what `FeatureFile.read` finds it by.
        status: `ok` or why there is no vector: `feature-encoding`, `feature-type`.
        reason: the same in fixed words.
    """

    key: str
    values: np.ndarray | None
    place: int
    status: str = "ok"
    reason: str = ""


@dataclass(frozen=True)
class ScannedFeatures:
    """The result of reading a file of features once.

    Attributes:
        fingerprint: hex SHA-256 of its content.
        dim: width of its vectors; 0 where a file without rows does not say it.
        places: int64, one per row, in the order of the file; none of an empty shard, which is whole and has no rows.
        key_hashes: uint64, one per row (`hash_of_key`); empty where rows have no keys.
    """

    fingerprint: str
    dim: int
    places: np.ndarray
    key_hashes: np.ndarray


@dataclass(frozen=True)
class SourceAddress:
    """The address of a source of samples, as `stages.sources.open_source` takes it: whoever plans opens it."""

    uri: str
    kind: str
    options: dict[str, str]


class FeatureFile(Protocol):
    """One file of features, with the table of its keys where that is another file. Cheap to make; opens nothing.

    Class attributes: `format`, `extensions` (of files that have this format without being told) and `option_names`.
    """

    format: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]]
    option_names: ClassVar[tuple[str, ...]]
    uri: str
    modality: Modality
    options: dict[str, str]

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None: ...

    @classmethod
    def expand(cls, path: str, modality: Modality, options: dict[str, str]) -> list[Self]:
        """Returns the files of features behind `path`, one absolute path; raises `UsageError` when there are none."""
        ...

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that are read: `uri` first, then those beside it."""
        ...

    def scan(self) -> ScannedFeatures:
        """Reads everything once through; raises `RefusedError` when it is cut, of another type, or does not add up."""
        ...

    def stream(self, first_row: int, num_rows: int, place: int) -> Iterator[FeatureRow]:
        """Yields `num_rows` rows from `first_row` on, which lies at `place`; fewer when the file ends."""
        ...

    def read(self, places: Sequence[int]) -> list[FeatureRow]:
        """Returns the rows at `places`, in the order asked; holds all of them in memory."""
        ...

    def sentences(self) -> SourceAddress | None:
        """Returns where the sentences of the rows stand, in the same order; None where there are none.

        Raises `UsageError` when there should be one and it is not there.
        """
        ...


class HashedFile:
    """A file that takes the SHA-256 of what is read, for one sequential pass."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self.size_bytes = file.size_bytes
        self.sha256 = hashlib.sha256()
        self.stream = file.stream

    def read_at(self, offset_bytes: int, size_bytes: int) -> bytes:
        data = self._file.read_at(offset_bytes, size_bytes)
        self.sha256.update(data)
        return data


def content_sha256(file: SourceFile) -> str:
    """Returns the SHA-256 of everything in `file`, as 64 hexadecimal digits."""
    digest, position = hashlib.sha256(), 0
    while chunk := file.read_at(position, _CHUNK_BYTES):
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()
