"""What all writers of an array agree on is published whole, in order, and only under the lock."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache_schema.atomic import Fence
from cache_schema.cache import Cache, create_cache
from cache_schema.errors import LockedError
from cache_schema.plan import Plan, SourceEntry
from cache_schema.publication import publish_metadata, publish_plan, publish_recipe, target_of
from tests.corpora.tiny_cache import make_cache, recipe_for

LOST = Fence(Path("/nowhere/lock.json"), "lost")


def plan_of(num_rows: int, before: Plan | None = None) -> Plan:
    plan = before or Plan("image", 16)
    entry = SourceEntry(f"/{len(plan.sources)}", "text", f"{len(plan.sources):064d}", num_rows)
    return plan.extended([entry], [{at: at for at in range(num_rows)}])


def shape_of(cache: Cache, name: str) -> tuple[int, ...]:
    return zarr.open_group(cache.layout.features("image"), mode="r")[name].shape


def test_a_plan_is_written_when_it_is_new_or_longer_and_left_alone_when_it_is_there(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    path = cache.layout.plan("image")
    with cache.lock() as lock:
        publish_plan(cache, plan_of(20), lock.fence)
        assert cache.plan("image") == plan_of(20)
        state = (path.stat().st_ino, path.stat().st_mtime_ns)
        publish_plan(cache, plan_of(20), lock.fence)
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == state
        publish_plan(cache, plan_of(3, before=plan_of(20)), lock.fence)
    assert Cache.open(cache.path).plan("image").num_rows == 23


def test_metadata_gives_the_new_array_and_those_beside_it_the_length_of_the_plan(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=20, num_texts=5, dim=8)
    longer = plan_of(5, before=cache.plan("image"))
    texts = cache.layout.feature_array("text", "imaginary.v0") / "zarr.json"
    before = texts.read_bytes()
    with cache.lock() as lock:
        publish_metadata(cache, "second.v0", recipe_for("image", 4), longer, lock.fence)
    assert longer.row_end == 37
    assert (shape_of(cache, "imaginary.v0"), shape_of(cache, "second.v0")) == ((37, 8), (37, 4))
    stored = zarr.open_group(cache.layout.features("image"), mode="r")["second.v0"]
    assert stored.dtype == np.float16 and np.isnan(stored[:]).all(), "what is not committed is not a number"
    assert texts.read_bytes() == before


def test_a_longer_plan_leaves_the_features_that_are_there(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=16, num_texts=0)
    features = cache.array("image").features.gather(np.arange(16))
    with cache.lock() as lock:
        longer = plan_of(5, before=cache.plan("image"))
        publish_metadata(cache, "imaginary.v0", cache.array("image").recipe, longer, lock.fence)
    stored = zarr.open_group(cache.layout.features("image"), mode="r")["imaginary.v0"]
    assert stored.shape == (21, 8) and stored[:16].tobytes() == features.tobytes()


def test_a_recipe_makes_an_array_exist_and_has_no_probes_unless_they_are_given(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    with cache.lock() as lock:
        publish_recipe(cache, "one.v0", recipe_for("image", 4), None, lock.fence)
        publish_recipe(cache, "two.v0", recipe_for("image", 4), b"probes", lock.fence)
    cache = Cache.open(cache.path)
    assert cache.arrays("image") == ["one.v0", "two.v0"]
    assert cache.array("image", "one.v0").recipe == recipe_for("image", 4)
    assert not cache.layout.probes("image", "one.v0").exists()
    assert cache.layout.probes("image", "two.v0").read_bytes() == b"probes"
    assert cache.array("image", "two.v0").recipe.probes_sha256 == hashlib.sha256(b"probes").hexdigest()
    assert cache.array("image", "two.v0").recipe.fingerprint == recipe_for("image", 4).fingerprint


def test_probes_are_there_before_the_recipe_that_names_them(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    cache.layout.recipe("image", "one.v0").mkdir(parents=True)  # the recipe cannot be renamed to its place
    with cache.lock() as lock, pytest.raises(Exception, match=r"cannot write .*recipe\.json"):
        publish_recipe(cache, "one.v0", recipe_for("image", 4), b"probes", lock.fence)
    assert cache.layout.probes("image", "one.v0").read_bytes() == b"probes"


def test_a_writer_that_lost_the_lock_publishes_nothing(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    recipe = recipe_for("image", 4)
    for publish in (
        lambda: publish_plan(cache, plan_of(3), LOST),
        lambda: publish_metadata(cache, "one.v0", recipe, plan_of(3), LOST),
        lambda: publish_recipe(cache, "one.v0", recipe, None, LOST),
        lambda: publish_recipe(cache, "one.v0", recipe, b"probes", LOST),
    ):
        with pytest.raises(LockedError):
            publish()
    assert [path.name for path in cache.path.rglob("*") if path.is_file()] == ["cache.json"]


def test_a_target_names_the_array_its_recipe_and_its_rows(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=3, num_texts=0, dim=6)
    target = target_of(cache, cache.array("image"))
    assert (target.modality, target.array, target.layout) == ("image", "imaginary.v0", cache.layout)
    assert (target.row_format.part_rows, target.row_format.width, target.row_format.dtype) == (16, 6, "float16")
    assert target.fingerprint == recipe_for("image", 6).fingerprint
