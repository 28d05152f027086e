"""A selection is bound to its rows: it stays valid while they are what they were, and everything else is refused."""

import hashlib
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema import atomic, lock
from cache_schema.cache import Cache, create_cache
from cache_schema.errors import DamagedError, LockedError, MismatchError, UnfinishedError, UsageError
from cache_schema.json_file import read_sealed, seal
from cache_schema.leftovers import leftovers_of, remove_leftovers
from cache_schema.plan import SourceEntry, write_plan
from cache_schema.selections import read_selection, write_selection
from cache_schema.verify import verify_cache
from tests.corpora.by_hand import METHOD, select
from tests.corpora.damaged_files import DAMAGE
from tests.corpora.tiny_cache import add_array, make_cache, unit_features

ROWS = np.array([0, 1, 5, 16, 31, 39], np.int64)


@pytest.fixture(scope="module")
def good_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = make_cache(tmp_path_factory.mktemp("good") / "cache", bad=(3,))
    select(cache, "some", ROWS)
    return cache.path


@pytest.fixture
def cache(good_cache: Path, tmp_path: Path) -> Cache:
    return Cache.open(shutil.copytree(good_cache, tmp_path / "cache"))


def test_a_selection_comes_back_as_it_was_written_and_verifies(cache: Cache) -> None:
    selection = read_selection(cache, "some")
    assert selection.rows.tolist() == ROWS.tolist() and selection.rows.dtype == np.int64
    assert (selection.modality, selection.method, selection.report) == ("image", METHOD, {"note": "chosen one by one"})
    assert selection.digest == hashlib.sha256(ROWS.tobytes()).hexdigest()
    assert pq.read_table(cache.layout.selection("some")).column("row").to_pylist() == ROWS.tolist()
    assert verify_cache(cache.path) == []


def test_an_empty_selection_is_one(cache: Cache) -> None:
    select(cache, "none", ROWS[:0])
    assert len(read_selection(cache, "none").rows) == 0
    assert verify_cache(cache.path) == []


def test_an_unknown_selection_is_refused_with_the_known_ones(cache: Cache) -> None:
    with pytest.raises(UsageError, match=r"unknown selection .* 'sum' \(did you mean 'some'\?\); known: some"):
        read_selection(cache, "sum")
    with pytest.raises(UsageError, match="cannot name a selection"):
        select(cache, "../up", ROWS)


def test_a_name_stands_for_one_way_of_choosing(cache: Cache) -> None:
    same = read_selection(cache, "some")
    write_selection(cache, same)
    with pytest.raises(MismatchError, match=r"made otherwise .*'by lot' now, 'by hand' then.*use another name"):
        write_selection(cache, replace(same, method={"name": "by lot"}))
    assert read_selection(cache, "some").rows.tolist() == ROWS.tolist()


def test_a_selection_is_not_written_while_the_cache_is(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    with cache.lock(), pytest.raises(LockedError):
        select(cache, "other", ROWS)
    assert cache.layout.selection_names() == ["some"]


def test_a_selection_stays_valid_when_the_cache_grows(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    features = unit_features(60, 8)
    add_array(cache, "image", features[:40])
    select(cache, "some", ROWS)
    plan = Cache.open(cache.path).plan("image")
    longer = plan.extended([SourceEntry("/elsewhere", "text", "1" * 64, 20)], [{at: at for at in range(20)}])
    write_plan(cache.layout.plan("image"), longer)
    assert len(read_selection(Cache.open(cache.path), "some").rows) == len(ROWS)  # also before the new part is done
    add_array(Cache.open(cache.path), "image", features, parts=(3, 4))
    assert Cache.open(cache.path).array("image").num_rows == 60
    assert read_selection(Cache.open(cache.path), "some").rows.tolist() == ROWS.tolist()
    assert verify_cache(cache.path) == []


def test_a_selection_of_rows_that_changed_is_refused(cache: Cache) -> None:
    shutil.rmtree(cache.layout.records("image", "imaginary.v0"))
    add_array(cache, "image", unit_features(40, 8, seed=9), bad=(3,))
    with pytest.raises(MismatchError, match=r"selection 'some' came from parts of .* have"):
        read_selection(Cache.open(cache.path), "some")
    assert any("some.parquet" in problem.where for problem in verify_cache(cache.path))


def test_a_selection_of_a_part_that_is_no_longer_committed_is_refused(cache: Cache) -> None:
    cache.layout.record("image", "imaginary.v0", 1).unlink()
    with pytest.raises(UnfinishedError, match="lacks 1 of 3 parts"):
        read_selection(Cache.open(cache.path), "some")


def test_a_selection_of_another_cache_is_refused(cache: Cache, tmp_path: Path) -> None:
    other = create_cache(tmp_path / "other", 16)
    add_array(other, "image", unit_features(40, 8, seed=5))
    shutil.copytree(cache.layout.all_selections, other.layout.all_selections)
    with pytest.raises(MismatchError, match="make it again under another name"):
        read_selection(Cache.open(other.path), "some")


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_selection_is_refused_and_named_by_verify(cache: Cache, fault: str) -> None:
    DAMAGE[fault](cache.layout.selection("some"))
    with pytest.raises(DamagedError, match=r"some\.parquet is missing or not the file"):
        read_selection(cache, "some")
    (problem,) = verify_cache(cache.path)
    assert problem.where.endswith("some.parquet")


@pytest.mark.parametrize("fault", [fault for fault in DAMAGE if fault != "deleted"])
def test_a_damaged_sidecar_is_refused_and_named_by_verify(cache: Cache, fault: str) -> None:
    DAMAGE[fault](cache.layout.selection_sidecar("some"))
    with pytest.raises(DamagedError, match=r"some\.json"):
        read_selection(cache, "some")
    assert any("some.json" in problem.what for problem in verify_cache(cache.path))


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([0, 1, 5, 5], "names row 5 twice"),
        ([0, 5, 1], "has row 1 after row 5"),
        ([0, 40], "names row 40"),
        ([-1, 3], "names row -1"),
        ([0, 2**40], "names row 1099511627776"),
    ],
)
def test_wrong_rows_under_right_checksums_are_named(cache: Cache, rows: list[int], what: str) -> None:
    table = pa.table({"row": np.array(rows, np.int64)}, schema=pa.schema([pa.field("row", pa.int64(), nullable=False)]))
    replace_file(cache, table)
    with pytest.raises(DamagedError, match=what):
        read_selection(cache, "some")
    assert any(what in problem.what for problem in verify_cache(cache.path))


def test_a_table_of_other_columns_is_no_selection(cache: Cache) -> None:
    replace_file(cache, pa.table({"rows": [1, 2]}))
    with pytest.raises(DamagedError, match="has columns"):
        read_selection(cache, "some")


def replace_file(cache: Cache, table: pa.Table) -> None:
    """Replaces the selection by `table`, with a sidecar that fits."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    cache.layout.selection("some").write_bytes(buffer.getvalue())
    value = read_sealed(cache.layout.selection_sidecar("some"))
    value |= {"num_rows": len(table), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    atomic.publish_json(cache.layout.selection_sidecar("some"), seal(value))


def test_a_selection_is_no_leftover_and_an_interrupted_one_is(cache: Cache) -> None:
    assert leftovers_of(cache) == []
    half = cache.layout.selection("half")
    shutil.copy(cache.layout.selection("some"), half)
    assert leftovers_of(cache) == [half]
    assert remove_leftovers(cache)[0] == 1
    assert read_selection(cache, "some").rows.tolist() == ROWS.tolist()
