"""What was committed of the rows of one part, and whether features are the ones that it was committed with.

Sample table, record and row hashes say of every row what it is, whether it has a feature, and a hash of all that and
of the feature's bytes. A checksum says only that a file is the one that its record names; the hashes bind the two
together, so that a record that was sealed anew over other files is found out by whoever reads a feature.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cache_schema.errors import DamagedError
from cache_schema.features import NORM_TOLERANCE
from cache_schema.records import HASH_BYTES, Record, row_hash
from cache_schema.samples import OK

Outcome = tuple[int, str, str, str]
"""Row, key, status and reason of a sample, as one array sees it."""

VERIFY = "run `pipeline verify` to see all damage"

COLUMNS = ("row", "key", "status", "reason", "digest")
"""The columns of a sample table that rows are judged by."""


def outcome_of(table: pa.Table, record: Record, first: int = 0) -> list[Outcome]:
    """Returns the outcome of the rows of `table`, which begins at offset `first` of the part of `record`."""
    exceptions = {e.offset - first: e for e in record.exceptions}
    rows = zip(*(table.column(name).to_pylist() for name in ("row", "key", "status", "reason")), strict=True)
    return [
        (row, key, exceptions[i].status, exceptions[i].reason) if i in exceptions else (row, key, status, reason)
        for i, (row, key, status, reason) in enumerate(rows)
    ]


@dataclass(frozen=True, eq=False)
class CommittedRows:
    """The rows of one committed part of one array.

    Attributes:
        where: names part and array, for messages.
        table: the columns `COLUMNS` of its sample table.
        record: its record.
        hashes: 16 bytes per row.
    """

    where: str
    table: pa.Table
    record: Record
    hashes: bytes

    def require(self, first: int, features_BD: np.ndarray) -> None:
        """Raises `DamagedError` unless `features_BD` are what was committed of the rows from offset `first` on.

        Features beyond the planned rows, as the last chunk of a short part has them, are passed over.
        """
        features_BD = features_BD[: max(0, self.record.num_rows - first)]
        for what in self.problems(first, features_BD):
            raise DamagedError(f"{what} in {self.where}: {VERIFY}")
        actual = self.hashes_of(first, features_BD)
        stored = self.hashes[HASH_BYTES * first : HASH_BYTES * first + len(actual)]
        if actual != stored:
            same = (np.frombuffer(actual, np.uint8) == np.frombuffer(stored, np.uint8)).reshape(-1, HASH_BYTES)
            row, key, _, _ = self._outcome(first, len(features_BD))[int(np.argmin(same.all(axis=1)))]
            raise DamagedError(f"row {row} ({key!r}) is not the one that was committed in {self.where}: {VERIFY}")

    def problems(self, first: int, features_BD: np.ndarray) -> Iterator[str]:
        """Yields every row from offset `first` on that is not accounted for once, or has no usable feature."""
        outcome = self._outcome(first, len(features_BD))
        recorded = np.ones(self.record.num_rows, bool)
        recorded[list(self.record.bad)] = False
        recorded = recorded[first : first + len(features_BD)]
        is_ok = np.array([status == OK for _, _, status, _ in outcome], bool)
        norms = np.linalg.norm(features_BD.astype(np.float32), axis=1)
        # Squares of float16 values do not overflow in float32, so a norm is finite exactly where all values are.
        has_feature = np.isfinite(norms)
        for at in np.flatnonzero((has_feature != is_ok) | (is_ok != recorded)):
            row, key, status, _ = outcome[at]
            yield (
                f"row {row} ({key!r}) has status {status}, {'a' if has_feature[at] else 'no'} feature, and its record "
                f"says {'ok' if recorded[at] else 'bad'}"
            )
        for at in np.flatnonzero(has_feature & (np.abs(norms - 1) > NORM_TOLERANCE)):
            yield f"the feature of row {outcome[at][0]} does not have norm 1"

    def hashes_of(self, first: int, features_BD: np.ndarray) -> bytes:
        """Returns the hashes of the rows from offset `first` on, recomputed with these features."""
        digests = self.table.column("digest").slice(first, len(features_BD)).to_pylist()
        data, width = features_BD.tobytes(), features_BD.shape[1] * features_BD.itemsize
        return b"".join(
            row_hash(key, status, reason, digest, data[at * width : (at + 1) * width] if status == OK else b"")
            for at, ((_, key, status, reason), digest) in enumerate(
                zip(self._outcome(first, len(features_BD)), digests, strict=True)
            )
        )

    def _outcome(self, first: int, num_rows: int) -> list[Outcome]:
        return outcome_of(self.table.slice(first, num_rows), self.record, first)
