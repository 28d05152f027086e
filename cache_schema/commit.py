"""The commit of a part: shard, then sample table, then row hashes (and view checks), then the record.

Doing it again after a crash is idempotent: until the record is there the part is pending, and the same samples and
features give the same files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cache_schema import atomic, shards
from cache_schema.errors import UnfinishedError
from cache_schema.json_file import seal
from cache_schema.layout import Layout, Modality
from cache_schema.records import Record, RowException, read_record, row_hash
from cache_schema.samples import OK, Sample, encode_table, read_table, table_of
from cache_schema.sha256 import sha256_of
from cache_schema.view_checks import VIEW_CHECK_BYTES
from cache_schema.withdrawn import compare_samples, note_of, require_same_rows, require_same_samples


@dataclass(frozen=True)
class ArrayTarget:
    """The array that parts are committed to, as plain values that travel to any worker."""

    layout: Layout
    modality: Modality
    array: str
    row_format: shards.RowFormat
    fingerprint: str


def commit_part(
    target: ArrayTarget,
    part: int,
    samples: Sequence[Sample],
    features_BD: np.ndarray,
    *,
    part_fingerprint: str,
    exceptions: Mapping[int, RowException],
    view_checks: bytes | None = None,
    numerics: str,
    allow_mixed_numerics: bool = False,
    seconds: Mapping[str, float],
    fence: atomic.Fence | None,
) -> Record:
    """Commits one part and returns its record. After a crash at any instant the part is committed or pending.

    Args:
        target: the array.
        part: number of the part.
        samples: every planned row of the part, in order.
        features_BD: float16 of shape (len(samples), dim), NaN exactly in the rows that have none.
        part_fingerprint: what the plan says of the part.
        exceptions: offset in the part -> what this array says of that row beyond its sample.
        view_checks: for a view that is a crop, 4 bytes per row, zeros where a row has no feature.
        numerics: kind of device and arithmetic that computed the features.
        allow_mixed_numerics: as `Record` has it.
        seconds: spent on each stage of the work.
        fence: the fence of the cache's lock; checked before every rename.

    Raises:
        MismatchError: another array of this cache saw other bytes for one of the samples, or this one did before the
            part was withdrawn.
        EnvironmentProblem, LockedError: as `atomic.publish_bytes`.
    """
    # What this array says of a row: its own exception, or what the sample says. Both have a status and a reason.
    outcome: list[Sample | RowException] = list(samples)
    for offset, exception in exceptions.items():
        outcome[offset] = exception
    bad = tuple(i for i, row in enumerate(outcome) if row.status != OK)
    assert np.array_equal(np.flatnonzero(~np.isfinite(features_BD).all(axis=1)), np.array(bad, np.int64))

    layout, modality = target.layout, target.modality
    hashes = b"".join(
        row_hash(sample.key, row.status, row.reason, sample.digest, feature if row.status == OK else b"")
        for sample, row, feature in zip(samples, outcome, _bytes_of_rows(features_BD), strict=True)
    )
    other = _record_of_part(layout, modality, part, besides=target.array)
    if other is not None:
        compare_samples(layout.samples(modality, part), modality, samples, "another array of this cache")
    note = note_of(layout, modality, target.array, part, part_fingerprint)
    if note is not None and other is None and not require_same_samples(note, layout, modality, part, samples):
        require_same_rows(note, layout, modality, target.array, part, hashes, numerics)
    shard = target.row_format.encode_shard(features_BD)
    shards.publish_shard(layout.feature_array(modality, target.array), part, shard, fence=fence)
    table_sha256 = other.files["samples"] if other is not None else _publish_samples(target, part, samples, fence)
    hashes_path = layout.row_hashes(modality, target.array, part)
    atomic.make_folder(hashes_path.parent)
    atomic.publish_bytes(hashes_path, hashes, fence=fence)
    files = {"shard": sha256_of(shard.data), "samples": table_sha256, "rows": sha256_of(hashes)}
    if view_checks is not None:
        assert len(view_checks) == VIEW_CHECK_BYTES * len(samples), len(view_checks)
        atomic.publish_bytes(layout.view_checks(modality, target.array, part), view_checks, fence=fence)
        files["views"] = sha256_of(view_checks)
    record = Record(
        part=part,
        num_rows=len(samples),
        fingerprint=target.fingerprint,
        part_fingerprint=part_fingerprint,
        bad=bad,
        exceptions=tuple(exceptions[i] for i in sorted(exceptions)),
        files=files,
        chunk_crc32c=shard.chunk_crc32c,
        numerics=numerics,
        seconds=dict(seconds),
        allow_mixed_numerics=allow_mixed_numerics,
    )
    atomic.publish_json(layout.record(modality, target.array, part), seal(record.to_json()), fence=fence)
    if (done := layout.withdrawn(modality, target.array, part)).exists():
        atomic.remove_file(done)
    return record


def _publish_samples(target: ArrayTarget, part: int, samples: Sequence[Sample], fence: atomic.Fence | None) -> str:
    """Publishes the sample table, which no other array did yet, and returns its SHA-256."""
    path = target.layout.samples(target.modality, part)
    data = encode_table(table_of(samples, target.modality))
    atomic.make_folder(path.parent)
    atomic.publish_bytes(path, data, fence=fence)
    return sha256_of(data)


def committed_samples(layout: Layout, modality: Modality, part: int) -> list[Sample]:
    """Returns the samples of a part that some array has committed.

    Raises:
        UnfinishedError: none has.
        DamagedError: the sample table is not the one that was committed.
    """
    record = _record_of_part(layout, modality, part)
    path = layout.samples(modality, part)
    if record is None:
        raise UnfinishedError(f"part {part} of the {modality}s in {layout.root} is not committed: finish extract")
    return [Sample(**row) for row in read_table(path, modality, sha256=record.files["samples"]).to_pylist()]


def _record_of_part(layout: Layout, modality: Modality, part: int, besides: str | None = None) -> Record | None:
    for name in layout.array_names(modality):
        path = layout.record(modality, name, part)
        if name != besides and path.exists():
            return read_record(path)
    return None


def _bytes_of_rows(features_BD: np.ndarray) -> Iterator[bytes]:
    data, width = features_BD.tobytes(), features_BD.shape[1] * features_BD.itemsize
    return (data[start : start + width] for start in range(0, len(data), width))
