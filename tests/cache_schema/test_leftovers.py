"""What no record names is left over, and can be removed."""

import shutil
from pathlib import Path

import pytest

from cache_schema.cache import Cache
from cache_schema.layout import shard_path
from cache_schema.leftovers import leftovers_of, remove_leftovers
from cache_schema.verify import verify_cache
from tests.corpora.tiny_cache import make_cache

ARRAY = "imaginary.v0"


@pytest.fixture(scope="module")
def good_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("good") / "cache", bad=(3,)).path


@pytest.fixture
def cache(good_cache: Path, tmp_path: Path) -> Cache:
    return Cache.open(shutil.copytree(good_cache, tmp_path / "cache"))


def parts_of(cache: Cache, part: int) -> dict[str, Path]:
    layout = cache.layout
    return {
        "shard": shard_path(layout.features("image") / ARRAY, part),
        "samples": layout.samples("image", part),
        "rows": layout.row_hashes("image", ARRAY, part),
        "record": layout.record("image", ARRAY, part),
        "recipe": layout.recipe("image", ARRAY),
        "plan": layout.plan("image"),
        "metadata": layout.features("image") / ARRAY / "zarr.json",
    }


def test_a_deleted_record_makes_the_part_pending_and_its_files_leftovers(cache: Cache) -> None:
    parts_of(cache, 1)["record"].unlink()
    assert [part.number for part in Cache.open(cache.path).array("image").pending()] == [1]
    assert verify_cache(cache.path) == []
    assert {path.name for path in leftovers_of(cache)} == {"0", "00001.parquet", "00001.rows"}


def test_leftovers_are_removed_and_nothing_that_a_record_names(cache: Cache) -> None:
    parts_of(cache, 1)["record"].unlink()
    (cache.path / "image" / ".plan.json.1-2.partial").write_bytes(b"{")
    kept = {path for path in cache.path.rglob("*") if path.is_file()} - set(leftovers_of(cache))
    digest = cache.array("text").digest()
    assert remove_leftovers(cache)[0] == 4
    there = {path for path in cache.path.rglob("*") if path.is_file() and not path.name.endswith(".guard")}
    assert there == kept
    assert verify_cache(cache.path) == []
    assert Cache.open(cache.path).array("text").digest() == digest
