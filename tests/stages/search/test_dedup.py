"""Duplicates among real pictures and sentences are found, the first of each group stays, the cache does not change."""

from pathlib import Path

import numpy as np
import pytest

from cache_schema import lock
from cache_schema.cache import Cache, create_cache
from cache_schema.errors import LockedError, MismatchError, UnfinishedError
from cache_schema.selections import read_selection
from cache_schema.verify import verify_cache
from stages.search.dedup import dedup
from tests.corpora.folders import contents_of
from tests.corpora.repeated_corpus import repeated_cache
from tests.corpora.tiny_cache import add_array, unit_features


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return repeated_cache(tmp_path_factory.mktemp("corpus"))


def content(cache: Cache) -> dict[str, str]:
    """Returns the SHA-256 of every file of the cache but selections and lock."""
    return {name: sha256 for name, sha256 in contents_of(cache.path).items() if not name.startswith("selections/")}


def kept_keys(cache: Cache, name: str) -> list[str]:
    selection = read_selection(cache, name)
    return [key.removesuffix(".jpg") for key in cache.keys(selection.modality, selection.rows)]


def test_equal_bytes_are_duplicates_and_the_first_in_plan_order_is_kept(cache: Cache) -> None:
    before = content(cache)
    report = dedup(cache, modality="image", name="unique").report
    assert kept_keys(cache, "unique") == [f"{n:02d}" for n in [*range(1, 18), 21, 22]]
    assert {key: report[key] for key in ("rows", "kept", "dropped", "groups")} == {
        "rows": 22,
        "kept": 19,
        "dropped": 3,
        "groups": 2,
    }
    assert [(group["key"][:2], group["rows"]) for group in report["largest_groups"]] == [("02", 3), ("17", 2)]
    pairs = {(pair["kept"][:2], pair["dropped"][:2]): pair["cosine"] for pair in report["examples"]}
    assert pairs == {("02", "18"): 1.0, ("17", "20"): 1.0}
    assert content(cache) == before and verify_cache(cache.path) == []


def test_a_picture_saved_again_with_another_quality_is_a_near_duplicate(cache: Cache) -> None:
    report = dedup(cache, modality="image", name="distinct", threshold=0.99).report
    assert kept_keys(cache, "distinct") == [f"{n:02d}" for n in range(1, 18)]
    pairs = {(pair["kept"][:2], pair["dropped"][:2]): pair["cosine"] for pair in report["examples"]}
    assert pairs.keys() == {("02", "18"), ("05", "21"), ("06", "22"), ("17", "20")}
    assert 0.99 <= pairs["05", "21"] < 1


def test_sentences_are_duplicates_when_they_are_equal_after_cleaning(cache: Cache) -> None:
    report = dedup(cache, modality="text", name="sentences").report
    rows = read_selection(cache, "sentences").rows
    assert cache.texts(rows) == ["a red disc", "a blue disc", "a green square", "A red disc"]
    assert (report["rows"], report["dropped"], report["groups"]) == (7, 3, 2)


def test_doing_it_again_returns_what_is_there_and_another_way_needs_another_name(cache: Cache) -> None:
    first = dedup(cache, modality="image", name="once")
    stamp = cache.layout.selection("once").stat().st_mtime_ns
    assert dedup(cache, modality="image", name="once").digest == first.digest
    assert cache.layout.selection("once").stat().st_mtime_ns == stamp
    with pytest.raises(MismatchError, match=r"made otherwise .* use another name"):
        dedup(cache, modality="image", name="once", threshold=0.9)


def test_nothing_is_a_duplicate_or_everything_is(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    add_array(cache, "image", unit_features(40, 64), bad=(0, 7))
    add_array(cache, "text", np.repeat(unit_features(1, 8), 40, axis=0), not_finite=(0,))
    none = dedup(cache, modality="image", name="none", threshold=0.95)
    assert none.rows.tolist() == [row for row in range(40) if row not in (0, 7)]
    assert (none.report["groups"], none.report["examples"], none.report["largest_groups"]) == (0, [], [])
    every = dedup(cache, modality="text", name="every", threshold=1.0)
    assert every.rows.tolist() == [1]
    assert every.report["largest_groups"] == [{"row": 1, "key": "1", "rows": 39}]
    assert len(every.report["examples"]) == 1
    assert verify_cache(cache.path) == []


def test_a_modality_without_ok_rows_gives_an_empty_selection(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    add_array(cache, "image", unit_features(3, 8), bad=(0, 1, 2))
    assert len(dedup(cache, modality="image", name="a").rows) == 0
    assert len(dedup(cache, modality="image", name="b", threshold=0.5).rows) == 0


def test_an_unfinished_array_is_refused(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    add_array(cache, "image", unit_features(40, 8), parts=(0, 2))
    with pytest.raises(UnfinishedError, match="2 of 3 parts are committed"):
        dedup(cache, modality="image", name="some")


def test_a_cache_that_is_being_written_is_read_and_gets_no_selection(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    with cache.lock(), pytest.raises(LockedError):
        dedup(cache, modality="image", name="locked")
    assert "locked" not in cache.layout.selection_names()
