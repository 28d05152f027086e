"""A part is committed file by file, its record last, and committing it again gives the same files."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from cache_schema import shards
from cache_schema.atomic import Fence
from cache_schema.commit import ArrayTarget, commit_part, committed_samples
from cache_schema.errors import DamagedError, EnvironmentProblem, LockedError, MismatchError, UnfinishedError
from cache_schema.features import feature_format
from cache_schema.layout import Layout
from cache_schema.records import Record, RowException, read_record
from cache_schema.samples import Sample
from tests.corpora.damaged_files import DAMAGE
from tests.corpora.folders import contents_of
from tests.corpora.tiny_cache import sample, unit_features

DIM = 4
SECONDS = {"read": 0.5, "forward": 1.25}


def target_at(root: Path, array: str = "one.v0") -> ArrayTarget:
    target = ArrayTarget(Layout(root), "image", array, feature_format(4, DIM), "f" * 64)
    shards.publish_array(target.layout.feature_array("image", array), target.row_format, 4)
    return target


def samples_of(num_rows: int, bad: Sequence[int] = ()) -> list[Sample]:
    return [sample("image", i, index=i, status="img-empty" if i in bad else "ok") for i in range(num_rows)]


def features_of(num_rows: int, missing: Sequence[int] = ()) -> np.ndarray:
    features = unit_features(num_rows, DIM)
    features[list(missing)] = np.nan
    return features


def commit(target: ArrayTarget, samples: list[Sample], features: np.ndarray, **changes: object) -> Record:
    usual: dict = {"part_fingerprint": "a" * 64, "exceptions": {}, "numerics": "cpu", "seconds": SECONDS, "fence": None}
    return commit_part(target, 0, samples, features, **{**usual, **changes})


def hash_by_hand(*fields: bytes) -> bytes:
    spelt = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
    return hashlib.blake2b(spelt, digest_size=16).digest()


def test_the_files_of_a_part_are_where_and_what_the_record_says(tmp_path: Path) -> None:
    features = features_of(4, missing=[2])
    record = commit(target_at(tmp_path), samples_of(4, bad=[2]), features)
    files = {
        "shard": "image/features.zarr/one.v0/c/0/0",
        "samples": "image/samples/00000.parquet",
        "rows": "image/arrays/one.v0/records/00000.rows",
    }
    contents = contents_of(tmp_path)
    assert record.files == {name: contents[path] for name, path in files.items()}
    assert read_record(tmp_path / "image/arrays/one.v0/records/00000.json") == record
    assert (record.part, record.num_rows, record.bad, record.fingerprint) == (0, 4, (2,), "f" * 64)
    assert (record.part_fingerprint, record.numerics, record.seconds) == ("a" * 64, "cpu", SECONDS)
    assert record.chunk_crc32c == (google_crc32c.value(features.tobytes()),)


def test_the_shard_and_the_sample_table_are_those_that_zarr_and_parquet_read(tmp_path: Path) -> None:
    features = features_of(4)
    commit(target_at(tmp_path), samples_of(4), features)
    stored = zarr.open_group(tmp_path / "image/features.zarr", mode="r")["one.v0"]
    assert stored[:].tobytes() == features.tobytes()
    table = pq.ParquetFile(tmp_path / "image/samples/00000.parquet").read()
    assert table.column("key").to_pylist() == ["0", "1", "2", "3"]


def test_row_hashes_are_of_what_this_array_says_of_each_row(tmp_path: Path) -> None:
    exceptions = {3: RowException(3, "feature-not-finite", "nan"), 1: RowException(1, "ok", "truncated")}
    samples, features = samples_of(4, bad=[2]), features_of(4, missing=[2, 3])
    record = commit(target_at(tmp_path), samples, features, exceptions=exceptions)
    said = [(b"ok", b""), (b"ok", b"truncated"), (b"img-empty", b"planted"), (b"feature-not-finite", b"nan")]
    expected = b""
    for i, (status, reason) in enumerate(said):
        feature = features[i].tobytes() if status == b"ok" else b""
        digest = hashlib.blake2b(f"image {i}".encode(), digest_size=16).digest()
        expected += hash_by_hand(str(i).encode(), status, reason, digest, feature)
    assert (tmp_path / "image/arrays/one.v0/records/00000.rows").read_bytes() == expected
    assert record.bad == (2, 3)
    assert record.exceptions == (exceptions[1], exceptions[3])


@pytest.mark.parametrize("missing", [[], [0, 1]])
def test_features_that_are_missing_elsewhere_than_the_bad_rows_are_our_own_mistake(
    tmp_path: Path, missing: list[int]
) -> None:
    with pytest.raises(AssertionError):
        commit(target_at(tmp_path), samples_of(2, bad=[0]), features_of(2, missing=missing))
    assert not Layout(tmp_path).record("image", "one.v0", 0).exists()


def test_a_part_may_be_short_hold_one_row_or_bad_rows_only(tmp_path: Path) -> None:
    record = commit(target_at(tmp_path / "one"), samples_of(1), features_of(1))
    assert (record.num_rows, record.num_ok) == (1, 1)
    record = commit(target_at(tmp_path / "bad"), samples_of(3, bad=[0, 1, 2]), features_of(3, missing=[0, 1, 2]))
    assert (record.num_rows, record.num_ok, record.bad) == (3, 0, (0, 1, 2))


def test_view_checks_are_committed_beside_the_record_and_named_in_it(tmp_path: Path) -> None:
    checks = bytes(range(1, 13))
    record = commit(target_at(tmp_path), samples_of(3), features_of(3), view_checks=checks)
    assert (tmp_path / "image/arrays/one.v0/records/00000.views").read_bytes() == checks
    assert record.files["views"] == hashlib.sha256(checks).hexdigest()
    with pytest.raises(AssertionError):
        commit(target_at(tmp_path / "short"), samples_of(3), features_of(3), view_checks=checks[:-1])


def test_allowed_mixed_numerics_are_noted(tmp_path: Path) -> None:
    assert not commit(target_at(tmp_path / "a"), samples_of(1), features_of(1)).allow_mixed_numerics
    assert commit(target_at(tmp_path / "b"), samples_of(1), features_of(1), allow_mixed_numerics=True).to_json()[
        "allow_mixed_numerics"
    ]


@pytest.mark.parametrize("num_renames", range(5))
def test_a_commit_that_stops_anywhere_has_no_record_and_again_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_renames: int
) -> None:
    def run(root: Path) -> Record:
        return commit(target_at(root), samples_of(4), features_of(4), view_checks=bytes(16))

    whole = run(tmp_path / "whole")
    target_at(tmp_path / "stopped")
    replaced: list[str] = []

    def full_disk(source: Path, path: Path) -> None:
        if len(replaced) == num_renames:
            raise OSError(28, "No space left on device")
        replaced.append(path.name)
        os.rename(source, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(EnvironmentProblem, match=r"No space left on device: free space"):
            run(tmp_path / "stopped")
    assert replaced == ["0", "00000.parquet", "00000.rows", "00000.views"][:num_renames]
    assert not Layout(tmp_path / "stopped").record("image", "one.v0", 0).exists()
    assert run(tmp_path / "stopped") == whole
    assert contents_of(tmp_path / "stopped") == contents_of(tmp_path / "whole")


def test_a_writer_that_lost_the_lock_commits_nothing(tmp_path: Path) -> None:
    target = target_at(tmp_path)
    before = contents_of(tmp_path)
    fence = Fence(tmp_path / "lock.json", "mine")
    (tmp_path / "lock.json").write_text('{"token": "of another"}')
    with pytest.raises(LockedError, match="nothing more is written here"):
        commit(target, samples_of(2), features_of(2), fence=fence)
    assert contents_of(tmp_path) == before
    (tmp_path / "lock.json").write_text('{"token": "mine"}')
    assert commit(target, samples_of(2), features_of(2), fence=fence).num_rows == 2


def test_a_second_array_of_the_same_samples_leaves_their_table_alone(tmp_path: Path) -> None:
    first = commit(target_at(tmp_path), samples_of(3, bad=[1]), features_of(3, missing=[1]))
    table = tmp_path / "image/samples/00000.parquet"
    before = (table.stat().st_mtime_ns, table.stat().st_ino)
    second = commit(target_at(tmp_path, "two.v0"), samples_of(3, bad=[1]), features_of(3, missing=[1]))
    assert (table.stat().st_mtime_ns, table.stat().st_ino) == before
    assert second.files["samples"] == first.files["samples"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": "other"}, r"image 'other' \(row 1\) is not what another array of this cache saw: digest "),
        ({"digest": b"\xab" * 16}, r"digest \w{12} \(ok\) then, abababababab \(ok\) now: restore the source; or"),
        ({"digest": None}, r"then, none \(ok\) now"),
    ],
)
def test_a_second_array_that_saw_other_bytes_is_refused_with_both_digests(
    tmp_path: Path, change: dict, said: str
) -> None:
    commit(target_at(tmp_path), samples_of(2), features_of(2))
    samples = samples_of(2)
    samples[1] = replace(samples[1], **change)
    with pytest.raises(MismatchError, match=said):
        commit(target_at(tmp_path, "two.v0"), samples, features_of(2))
    assert not Layout(tmp_path).record("image", "two.v0", 0).exists()


def test_a_second_array_that_gives_a_sample_another_status_is_refused_with_both(tmp_path: Path) -> None:
    commit(target_at(tmp_path), samples_of(2), features_of(2))
    with pytest.raises(MismatchError, match=r"\(ok\) then, \w{12} \(img-empty\) now"):
        commit(target_at(tmp_path, "two.v0"), samples_of(2, bad=[1]), features_of(2, missing=[1]))


def test_an_array_alone_may_write_its_sample_table_again(tmp_path: Path) -> None:
    commit(target_at(tmp_path), samples_of(2), features_of(2))
    commit(target_at(tmp_path), samples_of(2, bad=[0]), features_of(2, missing=[0]))
    assert [s.status for s in committed_samples(Layout(tmp_path), "image", 0)] == ["img-empty", "ok"]


def test_committed_samples_are_those_that_were_given(tmp_path: Path) -> None:
    samples = samples_of(3, bad=[1])
    samples[0] = replace(samples[0], key="ü/雪", digest=None, width=None)
    commit(target_at(tmp_path), samples, features_of(3, missing=[1]))
    assert committed_samples(Layout(tmp_path), "image", 0) == samples


def test_samples_that_no_array_committed_are_unfinished(tmp_path: Path) -> None:
    target_at(tmp_path)
    with pytest.raises(UnfinishedError, match=r"part 0 of the images in .* is not committed: finish extract"):
        committed_samples(Layout(tmp_path), "image", 0)


@pytest.mark.parametrize("damage", ["one bit flipped", "one byte short", "deleted"])
def test_a_damaged_sample_table_is_not_read(tmp_path: Path, damage: str) -> None:
    commit(target_at(tmp_path), samples_of(2), features_of(2))
    DAMAGE[damage](tmp_path / "image/samples/00000.parquet")
    with pytest.raises(DamagedError, match=r"00000\.parquet is not the one that was committed: run `pipeline verify`"):
        committed_samples(Layout(tmp_path), "image", 0)
