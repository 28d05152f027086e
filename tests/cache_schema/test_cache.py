"""The rules of the cache, each under its own words."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from cache_schema import atomic
from cache_schema.cache import Cache, create_cache
from cache_schema.errors import DamagedError, MismatchError, RefusedError, UnfinishedError, UsageError
from cache_schema.json_file import read_sealed, seal
from tests.corpora.tiny_cache import add_array, make_cache, unit_features


def test_plain_zarr_and_parquet_show_the_same_rows_and_features(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=40, part_rows=16, bad=(3, 20))
    array = cache.array("image")
    plain = zarr.open_group(tmp_path / "cache" / "image" / "features.zarr", mode="r")[array.name]
    assert plain.shape == (40, 8)
    assert plain.dtype == np.float16
    assert plain[:].tobytes() == array.features.gather(np.arange(40)).tobytes()
    tables = [pq.read_table(path) for path in sorted((tmp_path / "cache" / "image" / "samples").iterdir())]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["row"] for row in rows] == list(range(40))
    assert [row["row"] for row in rows if row["status"] != "ok"] == [3, 20]
    assert np.flatnonzero(np.isnan(plain[:]).any(axis=1)).tolist() == [3, 20]


def test_every_planned_row_has_exactly_one_of_a_feature_and_a_status(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    add_array(cache, "text", unit_features(40, 8), bad=(0, 17), not_finite=(5,))
    array = Cache.open(cache.path).array("text")
    assert (array.num_rows, array.num_ok, array.num_bad) == (40, 37, 3)
    assert sorted(set(range(40)) - set(array.ok_rows().tolist())) == [0, 5, 17]
    statuses = {row: status for part in range(3) for row, _, status, _ in array.outcome(part) if status != "ok"}
    assert statuses == {0: "img-empty", 5: "feature-not-finite", 17: "img-empty"}


def test_a_part_of_bad_rows_only_is_a_part_like_any_other(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=40, part_rows=16, bad=tuple(range(16, 32)))
    array = cache.array("image")
    assert array.pending() == []
    assert array.ok_rows().tolist() == [*range(16), *range(32, 40)]
    assert np.isnan(array.features.read_part(1)).all()


def test_the_logical_digest_does_not_depend_on_part_boundaries_or_segments(tmp_path: Path) -> None:
    features = unit_features(40, 8)
    digests = set()
    for part_rows in (8, 16, 64):
        cache = create_cache(tmp_path / str(part_rows), part_rows)
        add_array(cache, "image", features, bad=(3,))
        digests.add(Cache.open(cache.path).array("image").digest())
    assert len(digests) == 1


@pytest.mark.parametrize("change", ["feature", "bad row", "order"])
def test_the_logical_digest_depends_on_every_row(tmp_path: Path, change: str) -> None:
    features = unit_features(40, 8)
    changed = {"feature": features.copy(), "bad row": features, "order": features[::-1]}[change]
    if change == "feature":
        changed[7] = -changed[7]
    caches = [create_cache(tmp_path / name, 16) for name in ("one", "two")]
    add_array(caches[0], "image", features)
    add_array(caches[1], "image", changed, bad=(7,) if change == "bad row" else ())
    assert len({Cache.open(cache.path).array("image").digest() for cache in caches}) == 2


def test_a_second_array_shares_the_rows_and_checks_their_digests(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_texts=0)
    add_array(cache, "image", unit_features(40, 4, seed=9), name="second.v0", teacher={"name": "second"})
    opened = Cache.open(cache.path)
    assert opened.arrays("image") == ["imaginary.v0", "second.v0"]
    assert opened.array("image", "second.v0").features.shape == (40, 4)
    with pytest.raises(MismatchError, match=r"'3' \(row 3\) is not what another array of this cache saw"):
        add_array(cache, "image", unit_features(40, 4), name="third.v0", teacher={"name": "third"}, bad=(3,))


def test_a_part_without_a_record_is_pending_and_cannot_be_read(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    add_array(cache, "text", unit_features(40, 8), parts=(0, 2))
    array = Cache.open(cache.path).array("text")
    assert [part.number for part in array.pending()] == [1]
    with pytest.raises(UnfinishedError, match=r"2 of 3 parts are committed \(missing: 1\)"):
        array.require_complete()
    with pytest.raises(UnfinishedError):
        array.features.gather(np.array([16]))
    assert np.isfinite(array.features.gather(np.array([0, 39]))).all()


def test_texts_keys_and_locations_come_in_the_order_asked(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    rows = np.array([59, 0, 17, 0])
    assert cache.texts(rows) == ["sentence 59", "sentence 0", "sentence 17", "sentence 0"]
    assert cache.keys("text", rows) == ["59", "0", "17", "0"]
    found = cache.locations(np.array([39, 2]))
    assert [(place.key, place.offset_bytes, place.width) for place in found] == [("39", 39, 8), ("2", 2, 8)]


def test_a_cache_works_from_another_place_and_read_only(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    digest = cache.array("text").digest()
    moved = cache.path.rename(tmp_path / "moved")
    for folder, _, files in moved.walk() if hasattr(moved, "walk") else []:
        for name in files:
            (folder / name).chmod(0o444)
    assert Cache.open(moved).array("text").digest() == digest


@pytest.mark.parametrize("content", ["a file", "a folder of somebody else"])
def test_a_place_that_is_not_ours_is_refused_and_not_touched(tmp_path: Path, content: str) -> None:
    place = tmp_path / "place"
    if content == "a file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RefusedError, match="is not a feature cache"):
        create_cache(place, 16)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_newer_format_says_upgrade(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_texts=0)
    atomic.publish_json(cache.layout.cache_json, seal({**read_sealed(cache.layout.cache_json), "format": 2}))
    with pytest.raises(RefusedError, match="upgrade the pipeline"):
        Cache.open(cache.path)


def test_a_missing_cache_and_a_missing_array_name_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make one with `pipeline extract`"):
        Cache.open(tmp_path / "nothing")
    cache = make_cache(tmp_path / "cache", num_images=0)
    with pytest.raises(UsageError, match="0 image arrays"):
        cache.array("image")
    with pytest.raises(UsageError, match=r"did you mean 'imaginary\.v0'"):
        cache.array("text", "imaginery.v0")


@pytest.mark.parametrize(("field", "value"), [("num_rows", 15), ("bad", [99]), ("part", 1), ("part_fingerprint", "0")])
def test_a_record_that_does_not_add_up_is_refused(tmp_path: Path, field: str, value: object) -> None:
    cache = make_cache(tmp_path / "cache", num_texts=0)
    path = cache.layout.record("image", "imaginary.v0", 0)
    atomic.publish_json(path, seal({**read_sealed(path), field: value}))
    with pytest.raises(DamagedError):
        Cache.open(cache.path).array("image").records()


def test_a_recipe_changed_by_hand_is_refused(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_texts=0)
    path = cache.layout.recipe("image", "imaginary.v0")
    value = json.loads(path.read_text())
    value["recipe"]["logit_scale"] = 20.0
    value.pop("seal")
    atomic.publish_json(path, seal(value))
    with pytest.raises(DamagedError, match="changed by hand"):
        Cache.open(cache.path).array("image")


def test_a_reopened_cache_sees_what_was_replaced_or_withdrawn_meanwhile(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=40, part_rows=16)
    before = cache.array("image")
    read = before.records()
    path = cache.layout.record("image", before.name, 0)
    atomic.publish_bytes(path, path.read_bytes().replace(b'"num_rows": 16', b'"num_rows": 15'))
    atomic.remove_file(cache.layout.record("image", before.name, 1))
    now = cache.reopened().array("image")
    assert now.committed == {0, 2}
    assert now.record(2) is read[2]
    with pytest.raises(DamagedError, match="seal"):
        now.record(0)
    assert before.records() == read
