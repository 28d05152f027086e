"""The summary of a cache is plain JSON, and counts what is in it."""

import json
from pathlib import Path

import pytest

from cache_schema.cache import Cache, create_cache
from cache_schema.errors import DamagedError
from cache_schema.pixels import PixelRow, PixelsRecipe, commit_pixels, publish_pixels_recipe
from cache_schema.recipe import Recipe
from cache_schema.summary import bad_rows, summary_of, summary_of_arrays, summary_of_pixels
from tests.corpora.by_hand import select
from tests.corpora.tiny_cache import add_array, append_segment, make_cache, unit_features


def test_a_summary_of_a_whole_cache_is_json_and_counts_rows_sources_and_parts(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=40, num_texts=20, part_rows=16, bad=(3, 20))
    append_segment(cache, "text", unit_features(5, 8, seed=9))
    select(cache, "chosen", [0, 1])
    found = json.loads(json.dumps(summary_of(Cache.open(cache.path))))
    assert (found["cache"], found["part_rows"], found["pixels"]) == (str(tmp_path / "cache"), 16, None)
    assert found["parts"] == {"image": 3, "text": 3}
    assert list(found["arrays"]) == ["image/imaginary.v0", "text/imaginary.v0"]
    rows = {name: [array[k] for k in ("rows", "ok", "bad", "pending")] for name, array in found["arrays"].items()}
    assert rows == {"image/imaginary.v0": [40, 38, 2, 0], "text/imaginary.v0": [25, 25, 0, 0]}
    assert [(s["modality"], s["uri"], s["kind"], s["samples"]) for s in found["sources"]] == [
        ("image", "/nowhere", "text", 40),
        ("text", "/nowhere", "text", 20),
        ("text", f"/nowhere/{1:064d}", "text", 5),
    ]
    assert [s["fingerprint"] for s in found["sources"]] == ["0" * 64, "0" * 64, f"{1:064d}"]
    assert (found["indexes"], found["neighbours"], len(found["selections"])) == ([], [], 1)


def test_a_summary_of_an_empty_cache_is_empty(tmp_path: Path) -> None:
    assert summary_of(create_cache(tmp_path / "cache", 8)) == {
        "cache": str(tmp_path / "cache"),
        "part_rows": 8,
        "arrays": {},
        "pixels": None,
        "sources": [],
        "parts": {},
        "indexes": [],
        "neighbours": [],
        "selections": [],
    }


def test_an_unfinished_array_says_how_many_rows_are_pending_and_what_it_takes(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    features = unit_features(40, 8)
    add_array(cache, "image", features, parts=(0, 1), bad=(1,), view=2, specification="x:y", logit_scale=50.0)
    array = Cache.open(cache.path).array("image", "imaginary.v0")
    (found,) = summary_of_arrays([array]).values()
    assert [found[k] for k in ("rows", "ok", "bad", "pending")] == [32, 31, 1, 8]
    assert [found[k] for k in ("modality", "array", "view", "teacher")] == ["image", "imaginary.v0", 2, "x:y"]
    assert [found[k] for k in ("dim", "logit_scale", "precision")] == [8, 50.0, "float32"]
    assert (found["numerics"], found["mixed_numerics_allowed"]) == ({"cpu": 2}, 0)
    shards = list((tmp_path / "cache/image/features.zarr/imaginary.v0/c").glob("*/0"))
    assert found["bytes"] == sum(path.stat().st_size for path in shards)
    recipe = json.loads(cache.layout.recipe("image", "imaginary.v0").read_text())
    assert isinstance(array.recipe, Recipe) and found["fingerprint"] == recipe["fingerprint"]
    assert found["digest"] == array.digest() and len(found["digest"]) == 64


def test_no_arrays_have_an_empty_summary() -> None:
    assert summary_of_arrays([]) == {}


def test_stored_pixels_are_counted_with_their_rule(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_images=40, num_texts=0, part_rows=16)
    plan, recipe = cache.plan("image"), PixelsRecipe({"side": 64, "quality": 90}, {}, "9" * 64, {})
    publish_pixels_recipe(cache.layout, recipe, fence=None)
    for part in (0, 2):
        rows = [PixelRow(bytes(16), None if i == 1 else b"x") for i in range(plan.part(part).num_rows)]
        fingerprint = plan.part_fingerprint(plan.part(part))
        commit_pixels(cache.layout, recipe, part, rows, part_fingerprint=fingerprint, fence=None)
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "cache/image/pixels").glob("*.arrow"))
    expected = {"side": 64, "quality": 90, "pictures": 22, "parts": 2, "pending_parts": 1, "bytes": num_bytes}
    assert summary_of_pixels(Cache.open(cache.path)) == expected
    assert summary_of(Cache.open(cache.path))["pixels"] == expected
    cache.layout.pixels_record(0).write_text("{")
    with pytest.raises(DamagedError):
        summary_of_pixels(Cache.open(cache.path))


def test_bad_rows_are_told_array_by_array_with_source_and_words(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    add_array(cache, "image", unit_features(40, 8), bad=(20,), not_finite=(3,))
    append_segment(cache, "image", unit_features(5, 8, seed=9))
    add_array(cache, "text", unit_features(4, 8), bad=(0,))
    usual = {"array": "imaginary.v0", "source": "/nowhere", "status": "img-empty", "reason": "planted"}
    assert list(bad_rows(Cache.open(cache.path))) == [
        {**usual, "modality": "image", "row": 3, "key": "3", "status": "feature-not-finite", "reason": ""},
        {**usual, "modality": "image", "row": 20, "key": "20"},
        {**usual, "modality": "text", "row": 0, "key": "0"},
    ]


def test_a_cache_whose_rows_are_all_good_names_none_and_reads_no_sample_table(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    for path in (tmp_path / "cache").glob("*/samples/*"):
        path.unlink()
    assert list(bad_rows(cache)) == []
