"""The interface of every kind of source: a scan of names and sizes, samples in order, and one payload at random."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np

Modality = Literal["image", "text"]

MAX_PAYLOAD_BYTES = 256 << 20
"""A larger image payload is set aside unread, as `img-too-many-bytes`."""


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file of its own that a sample was read from, or was looked for at: its path, and its time, 0 if not there."""

    path: str
    mtime_ns: int = 0


@dataclass(frozen=True)
class RawSample:
    """One sample as it stands in its source, before any decoding.

    Attributes:
        key: its name, unique inside the source.
        payload: bytes of the image file, or UTF-8 bytes of the text; None exactly when `status` is not `ok`.
        offset_bytes: where the payload is, for `read_one`: a byte offset (of the entry in CSV and JSON lines), a row
            number (Parquet) or 0 (folder).
        size_bytes: bytes of the payload in the source.
        status: `ok` or why there is no payload: `src-unreadable`, `src-changed`, `src-no-image`, `text-type` …
        reason: the same in fixed words; for ok samples a note such as `misnamed`, or empty.
        file: where the sample is a local file of its own.
    """

    key: str
    payload: bytes | None
    offset_bytes: int
    size_bytes: int
    status: str = "ok"
    reason: str = ""
    file: SeenFile | None = None


@dataclass(frozen=True)
class ScannedSource:
    """The result of a scan of names, headers or lines, without decoding anything.

    Attributes:
        fingerprint: hex SHA-256 that changes when samples are added, removed, renamed or resized.
        num_samples: rows that the source will take; 0 of an empty shard, which is whole and has nothing in it.
        offsets: int64, one per sample: where `read` can start with that sample. Not where its payload is.
        key_hashes: uint64, one per sample (`hash_of_key`); empty where keys are only positions in the file, which
            cannot repeat inside it and mean nothing across files.
        ignored: how many members or files of each extension are not part of any sample's payload.
        state: of a source whose samples are files of their own: `newest_ns`, the time after which a file that changes
            is not what was planned; of a folder also `names` and `listing`, numbers that stand for the names in it,
            without and with their sizes.
    """

    fingerprint: str
    num_samples: int
    offsets: np.ndarray
    key_hashes: np.ndarray
    ignored: dict[str, int] = field(default_factory=dict)
    state: dict[str, int] = field(default_factory=dict)

    def offset_bytes(self, sample_index: int) -> int:
        """Returns where `read` can start with sample `sample_index`."""
        return int(self.offsets[sample_index])


class Source(Protocol):
    """One file or folder of samples. Cheap to make; nothing is opened before a method is called.

    Class attributes tell the registry what the kind can do: `kind`, `modalities`, `extensions` (of files that are
    this kind without being told) and `option_names`.
    """

    kind: ClassVar[str]
    modalities: ClassVar[tuple[Modality, ...]]
    extensions: ClassVar[tuple[str, ...]]
    option_names: ClassVar[tuple[str, ...]]
    uri: str
    modality: Modality
    options: dict[str, str]

    def __init__(self, uri: str, modality: Modality, options: dict[str, str]) -> None: ...

    def scan(self) -> ScannedSource:
        """Reads names, headers or lines, once through; raises `RefusedError` for a damaged source."""
        ...

    def read(self, first_sample: int, num_samples: int, offset_bytes: int) -> Iterator[RawSample]:
        """Yields exactly `num_samples` samples from `first_sample` on, in the order of the scan.

        `offset_bytes` is what the scan gave for `first_sample`. Raises `RefusedError` when the source ends early.
        """
        ...

    def read_one(self, key: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Returns one payload, from what its `RawSample` said. Raises `RefusedError` when it is not there any more.

        The bytes are those now in the source: compare their digest before believing them.
        """
        ...
