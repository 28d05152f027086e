"""Shards are ordinary Zarr v3, and the memory map returns exactly what zarr-python returns."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from cache_schema.errors import DamagedError, EnvironmentProblem, UnfinishedError, UsageError
from cache_schema.layout import shard_path
from cache_schema.shards import RowFormat, RowReader, check_part_rows, publish_array, publish_shard
from tests.corpora.damaged_files import DAMAGE, flip_bit
from tests.corpora.open_files import few_open_files
from tests.corpora.processes import ROOT


def write_array(folder: Path, rows: np.ndarray, part_rows: int) -> RowReader:
    row_format = RowFormat(part_rows, rows.shape[1], str(rows.dtype))
    publish_array(folder, row_format, len(rows))
    commits = {}
    for part in range(-(-len(rows) // part_rows)):
        shard = row_format.encode_shard(rows[part * part_rows : (part + 1) * part_rows])
        publish_shard(folder, part, shard)
        commits[part] = shard.chunk_crc32c
    return RowReader(folder, row_format, num_rows=len(rows), commits=commits)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize(("part_rows", "dtype"), [(7, "float16"), (1024, "float16"), (2048, "float16"), (16, "int64")])
def test_gather_and_read_part_return_exactly_what_zarr_returns(tmp_path: Path, part_rows: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((int(part_rows * 2.6), 24)) * 100).astype(dtype)
    if dtype == "float16":
        rows[3] = np.nan
    reader = write_array(tmp_path / "group" / "array", rows, part_rows)
    seen_by_zarr = zarr.open_group(tmp_path / "group", mode="r")["array"]
    assert seen_by_zarr.shape == rows.shape
    asked = rng.integers(0, len(rows), 200)
    assert same_bits(reader.gather(asked), seen_by_zarr.oindex[asked])
    for part in range(3):
        assert same_bits(reader.read_part(part), seen_by_zarr[part * part_rows : (part + 1) * part_rows])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_gather_keeps_the_order_asked_and_allows_repeats(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    part_rows = data.draw(st.integers(1, 9))
    rows = np.arange(data.draw(st.integers(1, 40)) * 3, dtype=np.float16).reshape(-1, 3)
    folder = tmp_path_factory.mktemp("shards") / "group" / "array"
    asked = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=50)), np.int64)
    assert same_bits(write_array(folder, rows, part_rows).gather(asked), rows[asked])


@pytest.mark.parametrize("part_rows", [0, -1, 1025, 1500, 2047])
def test_part_rows_that_cannot_be_cut_are_refused_with_the_rule(part_rows: int) -> None:
    with pytest.raises(UsageError, match=r"at most 1,024, or a multiple of 1,024"):
        check_part_rows(part_rows)


@pytest.mark.parametrize("part_rows", [1, 256, 1024, 16_384])
def test_part_rows_that_follow_the_rule_are_taken(part_rows: int) -> None:
    assert check_part_rows(part_rows) == part_rows


def damaged(tmp_path: Path, damage) -> RowReader:
    rows = np.random.default_rng(1).standard_normal((2048 * 2, 4)).astype(np.float16)
    reader = write_array(tmp_path / "group" / "array", rows, 2048)
    damage(shard_path(tmp_path / "group" / "array", 1))
    return reader


DAMAGES = {
    **DAMAGE,
    "a bit of a feature": lambda path: flip_bit(path, 12),
    "a bit of a checksum": lambda path: flip_bit(path, 1024 * 4 * 2 + 1),
    "a bit of the index": lambda path: flip_bit(path, -20),
    "a page of zeros": lambda path: path.write_bytes(bytes(4096) + path.read_bytes()[4096:]),
    "another part's shard": lambda path: shutil.copy(path.parent.parent / "0" / "0", path),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_shard_is_an_error_and_never_fill(tmp_path: Path, damage) -> None:
    reader = damaged(tmp_path, damage)
    with pytest.raises(DamagedError, match="shard"):
        reader.gather(np.arange(2048, 4096))
    assert np.isfinite(reader.gather(np.arange(2048))).all()


def test_a_shard_that_changes_while_it_is_open_is_noticed_at_the_next_touch(tmp_path: Path) -> None:
    rows = np.ones((8, 4), np.float16)
    reader = write_array(tmp_path / "group" / "array", rows, 8)
    reader.gather(np.arange(8))
    flip_bit(shard_path(tmp_path / "group" / "array", 0), 0)
    with pytest.raises(DamagedError, match="changed while"):
        reader.gather(np.arange(8))


def test_rows_outside_and_rows_of_pending_parts_are_errors(tmp_path: Path) -> None:
    row_format = RowFormat(4, 2, "float16")
    publish_array(tmp_path / "group" / "array", row_format, 8)
    reader = RowReader(tmp_path / "group" / "array", row_format, num_rows=8, commits={})
    with pytest.raises(UsageError, match="rows 0 to 7"):
        reader.gather(np.array([8]))
    with pytest.raises(UnfinishedError, match=r"part 1 .* is not committed"):
        reader.gather(np.array([5]))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_shard_and_its_metadata_are_byte_for_byte_what_zarr_writes(data) -> None:
    part_rows = data.draw(st.one_of(st.integers(1, 40), st.sampled_from([1023, 1024, 2048, 3072])))
    dtype = data.draw(st.sampled_from(["float16", "float32", "int64"]))
    rows = np.arange(data.draw(st.integers(0, part_rows)) * 3).reshape(-1, 3).astype(dtype)
    row_format = RowFormat(part_rows, 3, dtype)
    files: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(files),
        shape=(part_rows, 3),
        shards=(part_rows, 3),
        chunks=(row_format.chunk_rows, 3),
        dtype=dtype,
        fill_value=row_format.fill,
        filters=None,
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    array[:] = np.concatenate([rows, np.full((part_rows - len(rows), 3), row_format.fill, dtype)])
    assert row_format.encode_shard(rows).data == files["c/0/0"].to_bytes()
    assert row_format.array_metadata(part_rows) == files["zarr.json"].to_bytes()


def test_a_cache_is_written_read_and_verified_without_zarr(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['zarr'] = None\n"
        "from pathlib import Path\n"
        "from cache_schema.verify import verify_cache\n"
        "from tests.corpora.tiny_cache import make_cache\n"
        "cache = make_cache(Path(sys.argv[1]))\n"
        "assert cache.array('image').features.gather(cache.array('image').ok_rows()).shape == (40, 8)\n"
        "assert verify_cache(cache.path) == []\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "cache")], check=True, cwd=ROOT)
    assert zarr.open_group(tmp_path / "cache" / "image" / "features.zarr", mode="r")["imaginary.v0"].shape == (40, 8)


def test_more_parts_are_read_than_files_may_be_open(tmp_path: Path) -> None:
    rows = np.random.default_rng(2).standard_normal((64 * 4, 3)).astype(np.float16)
    reader = write_array(tmp_path / "group" / "array", rows, 4)
    with few_open_files(2):
        assert same_bits(reader.gather(np.arange(256)), rows)


def test_a_shard_that_cannot_be_opened_now_is_the_machines_fault_and_no_damage(tmp_path: Path) -> None:
    reader = write_array(tmp_path / "group" / "array", np.ones((8, 4), np.float16), 8)
    with few_open_files(0), pytest.raises(EnvironmentProblem, match="Too many open files"):
        reader.gather(np.arange(8))
    assert reader.gather(np.arange(8)).all()
