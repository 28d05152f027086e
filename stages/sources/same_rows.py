"""Whether a source still gives what was committed from it, and whether two places hold the same: by a few rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache_schema.errors import EnvironmentProblem, RefusedError
from cache_schema.samples import digest_of
from stages.sources.base import RawSample, ScannedSource, Source

NUM_COMPARED = 64


@dataclass(frozen=True)
class CommittedRow:
    """One row as it was committed: its number, its place in the source, and the digest of its payload."""

    row: int
    sample: int
    key: str
    offset_bytes: int
    size_bytes: int
    digest: bytes


@dataclass(frozen=True)
class LookedAgain:
    """The rows that were read again.

    Attributes:
        changed: those that the source does not give any more as they were committed.
        newest_ns: the newest time of a file of its own among the others; 0 where there is none.
    """

    changed: Sequence[CommittedRow]
    newest_ns: int


def drawn(num_rows: int, seed: int) -> np.ndarray:
    """Returns up to `NUM_COMPARED` different numbers below `num_rows`, ascending; all where there are no more."""
    if num_rows <= NUM_COMPARED:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng([seed, num_rows]).choice(num_rows, NUM_COMPARED, replace=False))


def look_again(source: Source, rows: Sequence[CommittedRow], *, has_files: bool) -> LookedAgain:
    """Reads `rows` of `source` again and compares them with what was committed.

    Args:
        source: with its samples at the places that it had when it was planned.
        rows: at least those that count.
        has_files: its samples are files of their own.

    Raises:
        EnvironmentProblem: the disk, the mount or the network fails, or not one of the rows' files is there.
    """
    changed: list[CommittedRow] = []
    num_gone = newest_ns = 0
    for row in sorted(rows, key=lambda row: (row.offset_bytes, row.sample)):
        raw = _file_of(source, row) if has_files else None
        payload = (_payload_of(source, row) if raw is None else raw.payload) or b""
        if digest_of(payload) != row.digest:
            changed.append(row)
            num_gone += raw is not None and raw.reason == "gone"
        elif raw is not None and raw.file is not None:
            newest_ns = max(newest_ns, raw.file.mtime_ns)
    if rows and num_gone == len(rows):
        raise EnvironmentProblem(
            f"not one of {len(rows)} files that were read before is left in {source.uri} (such as {rows[0].key!r}; a "
            "mount that was lost?): mount or restore them, then run again"
        )
    return LookedAgain(changed, newest_ns)


def hold_the_same(one: Source, other: Source, scan: ScannedSource, *, seed: int) -> bool:
    """Returns whether two sources with the same `scan` give the same bytes in the rows that are drawn."""
    for at in drawn(scan.num_samples, seed).tolist():
        first, second = (_sample(source, at, scan.offset_bytes(at)) for source in (one, other))
        if first is None or second is None:
            return False
        if (first.key, first.payload, first.status) != (second.key, second.payload, second.status):
            return False
    return True


def _file_of(source: Source, row: CommittedRow) -> RawSample | None:
    # Where a sample of such a source starts is where its payload is named.
    return _sample(source, row.sample, row.offset_bytes)


def _payload_of(source: Source, row: CommittedRow) -> bytes | None:
    try:
        return source.read_one(row.key, row.offset_bytes, row.size_bytes)
    except RefusedError:
        return None


def _sample(source: Source, at: int, offset_bytes: int) -> RawSample | None:
    try:
        return next(iter(source.read(at, 1, offset_bytes)))
    except RefusedError:
        return None
