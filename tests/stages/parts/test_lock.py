"""The cache of a run is looked at before it is made, or under the lock, and again when somebody else made it first."""

from pathlib import Path

import pytest

from cache_schema.cache import Cache, create_cache
from cache_schema.errors import LockedError, MismatchError, UsageError
from cache_schema.plan import Plan, SourceEntry
from cache_schema.publication import publish_plan
from cache_schema.shards import DEFAULT_PART_ROWS
from stages.parts.lock import cache_at, is_on_disk, locked_cache


class Looks:
    """Notes what every look at a cache sees; `meanwhile` is called by the first."""

    def __init__(self, meanwhile: object = None) -> None:
        self.seen: list[tuple[int, bool, bool]] = []
        self._meanwhile = meanwhile

    def __call__(self, cache: Cache) -> int:
        self.seen.append((cache.part_rows, is_on_disk(cache), cache.layout.lock_json.exists()))
        if callable(self._meanwhile) and len(self.seen) == 1:
            self._meanwhile()
        return len(self.seen)


def plan_something(path: Path, part_rows: int) -> None:
    """Does what another process does that makes a cache and plans something in it."""
    cache = create_cache(path, part_rows)
    with cache.lock() as lock:
        plan = Plan("text", part_rows).extended([SourceEntry("/a", "text", "0" * 64, 3)], [{0: 0}])
        publish_plan(cache, plan, lock.fence)


def test_a_new_cache_is_looked_at_once_before_anything_of_it_is_on_disk(tmp_path: Path) -> None:
    looks = Looks()
    with locked_cache(tmp_path / "cache", 8, looks) as (cache, found, fence):
        assert is_on_disk(cache) and cache.part_rows == 8 and found == 1
        fence.check()
        with pytest.raises(LockedError), cache.lock():
            pass
    assert looks.seen == [(8, False, False)]
    with Cache.open(tmp_path / "cache").lock():
        pass


def test_a_look_that_fails_leaves_no_cache_behind(tmp_path: Path) -> None:
    def look(cache: Cache) -> None:
        raise UsageError("nothing to do")

    with pytest.raises(UsageError), locked_cache(tmp_path / "cache", None, look):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_there_is_looked_at_once_and_under_the_lock(tmp_path: Path) -> None:
    create_cache(tmp_path / "cache", 16)
    looks = Looks()
    with locked_cache(tmp_path / "cache", None, looks) as (_, found, _):
        assert found == 1
    assert looks.seen == [(16, True, True)]


def test_a_cache_that_another_process_made_and_planned_in_meanwhile_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    looks = Looks(lambda: plan_something(path, 8))
    with locked_cache(path, 8, looks) as (cache, found, _):
        assert (found, cache.modalities, cache.plan("text").num_rows) == (2, ["text"], 3)
    assert looks.seen == [(8, False, False), (8, True, True)]


def test_a_cache_that_another_process_made_with_its_own_part_rows_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    looks = Looks(lambda: create_cache(path, 32))
    with locked_cache(path, None, looks) as (cache, found, _):
        assert (found, cache.part_rows) == (2, 32)
    assert looks.seen == [(DEFAULT_PART_ROWS, False, False), (32, True, True)]


def test_other_part_rows_are_refused_also_when_another_process_chose_them_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    looks = Looks(lambda: create_cache(path, 32))
    for _ in range(2):
        said = r"has part rows 32, this run asks for 8: drop --part-rows"
        with pytest.raises(MismatchError, match=said), locked_cache(path, 8, looks):
            pass
    assert len(looks.seen) == 1


def test_a_cache_that_is_not_there_is_empty_and_stays_so(tmp_path: Path) -> None:
    cache = cache_at(tmp_path / "none", None)
    assert (cache.part_rows, cache.modalities, cache.plan("image").num_parts) == (DEFAULT_PART_ROWS, [], 0)
    assert cache_at(tmp_path / "none", 4).part_rows == 4 and not is_on_disk(cache)
    assert list(tmp_path.iterdir()) == []
