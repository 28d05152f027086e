"""The note that a committed part was taken back to be made again: of the same samples, or it is refused."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cache_schema import atomic
from cache_schema.errors import DamagedError, MismatchError
from cache_schema.json_file import read_sealed, seal
from cache_schema.layout import Layout, Modality
from cache_schema.records import HASH_BYTES, read_record
from cache_schema.samples import Sample, read_table
from cache_schema.sha256 import sha256_of, sha256_of_file

_REMEDY = "restore the source; or, where it is as it should be now, take it with `pipeline extract --accept-new`"


@dataclass(frozen=True)
class Withdrawn:
    """What is known of a part as it was committed.

    Attributes:
        part_fingerprint: of the part as it was planned; planned anew, it is another part.
        samples: SHA-256 of its sample table; None where nobody knows.
        rows: SHA-256 of its row hashes, likewise.
        numerics: kind of arithmetic of its features; with another one no row hash can come out the same.
        tried_again: statuses whose rows may come out otherwise.
    """

    part_fingerprint: str
    samples: str | None
    rows: str | None
    numerics: str
    tried_again: tuple[str, ...] = ()


def withdraw_part(
    layout: Layout,
    modality: Modality,
    array: str,
    part: int,
    *,
    planned: str,
    tried_again: Sequence[str] = (),
    fence: atomic.Fence | None = None,
) -> None:
    """Removes the record of a part, after a note of what it must be again. Idempotent.

    Args:
        layout: of the cache.
        modality: of the part.
        array: that committed it.
        part: its number.
        planned: fingerprint of the part as it is planned, for a record that cannot be read.
        tried_again: statuses whose rows may come out otherwise.
        fence: the fence of the cache's lock.
    """
    path = layout.record(modality, array, part)
    if not path.exists():
        return
    try:
        record = read_record(path)
        files = record.files
        note = Withdrawn(planned, files["samples"], files["rows"], record.numerics, tuple(tried_again))
    except (DamagedError, KeyError):
        # The table that is there is all that is left to be compared with, if it can be read.
        note = Withdrawn(planned, _sha256_if_readable(layout.samples(modality, part), modality), None, "")
    atomic.publish_json(layout.withdrawn(modality, array, part), seal(asdict(note)), fence=fence)
    if fence is not None:
        fence.check()
    atomic.remove_file(path)


def note_of(layout: Layout, modality: Modality, array: str, part: int, part_fingerprint: str) -> Withdrawn | None:
    """Returns the note on a part that is about to be made again; None where there is none.

    Raises:
        DamagedError: the note is damaged.
    """
    path = layout.withdrawn(modality, array, part)
    note = read_note(path) if path.exists() else None
    return note if note is not None and note.part_fingerprint == part_fingerprint else None


def read_note(path: Path) -> Withdrawn:
    """Returns the note at `path`; raises `DamagedError` when it is damaged."""
    value = read_sealed(path)
    try:
        return Withdrawn(**{**value, "tried_again": tuple(value["tried_again"])})
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{path} is not a note on a withdrawn part ({error}): remove it, then run again") from error


def require_same_samples(
    note: Withdrawn, layout: Layout, modality: Modality, part: int, samples: Sequence[Sample]
) -> bool:
    """Returns whether the sample table of a withdrawn part is still there to be compared with.

    Raises:
        MismatchError: one of `samples` is not what it was, and was not to be tried again.
    """
    path = layout.samples(modality, part)
    if note.samples is None or sha256_of_file(path) != note.samples:
        return False
    compare_samples(path, modality, samples, "the part that is made again", note.tried_again)
    return True


def compare_samples(
    path: Path, modality: Modality, samples: Sequence[Sample], seen_by: str, tried_again: Sequence[str] = ()
) -> None:
    """Raises `MismatchError` when one of `samples` is not the one in the sample table at `path`.

    Args:
        path: of the table, which is right.
        modality: of the samples.
        samples: of the part, in order.
        seen_by: who saw what the table holds, for the message.
        tried_again: statuses in the table whose rows may be otherwise now.
    """
    table = read_table(path, modality, ["key", "digest", "status"])
    stored = zip(*(table.column(name).to_pylist() for name in ("key", "digest", "status")), strict=True)
    for sample, (key, digest, status) in zip(samples, stored, strict=True):
        if (sample.key, sample.digest, sample.status) != (key, digest, status) and status not in tried_again:
            raise MismatchError(
                f"{modality} {sample.key!r} (row {sample.row}) is not what {seen_by} saw: digest {_short(digest)} "
                f"({status}) then, {_short(sample.digest)} ({sample.status}) now: {_REMEDY}"
            )


def require_same_rows(
    note: Withdrawn, layout: Layout, modality: Modality, array: str, part: int, hashes: bytes, numerics: str
) -> None:
    """Compares the rows of a part whose sample table is lost with what they were, by what is left of their hashes.

    Raises:
        MismatchError: a row is not what it was, or cannot be compared on this machine.
    """
    path = layout.row_hashes(modality, array, part)
    if note.rows is None or note.tried_again or sha256_of_file(path) != note.rows:
        return
    then = path.read_bytes()
    if sha256_of(hashes) == note.rows:
        return
    if numerics != note.numerics:
        raise MismatchError(
            f"{modality} part {part} was computed on {note.numerics}, here is {numerics}, and its sample table is "
            "lost, so nobody can tell whether its samples are the same: make it again on such a machine"
        )
    differs = next(
        at
        for at in range(len(then) // HASH_BYTES)
        if then[at * HASH_BYTES : (at + 1) * HASH_BYTES] != hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES]
    )
    raise MismatchError(f"{modality} part {part} is not what it was, first in its row {differs}: {_REMEDY}")


def _sha256_if_readable(path: Path, modality: Modality) -> str | None:
    try:
        read_table(path, modality)
    except DamagedError:
        return None
    return sha256_of_file(path)


def _short(digest: bytes | None) -> str:
    return digest.hex()[:12] if digest else "none"
