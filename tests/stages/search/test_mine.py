"""Mined neighbours are the true nearest rows, resumable, and bound to what they were mined from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, EnvironmentProblem, MismatchError, UnfinishedError, UsageError
from cache_schema.json_file import read_sealed, readable_json, seal
from cache_schema.layout import Modality, shard_path
from cache_schema.neighbours import NeighboursReader
from cache_schema.verify import verify_cache
from stages.search.index import build_index
from stages.search.mine import mine
from tests.corpora.resealed import rewrite_features
from tests.corpora.tiny_cache import add_array, append_segment, make_cache, unit_features

K = 5


def mined(cache: Cache, name: str = "near", **changes: object) -> dict:
    arrays = {"from_array": cache.array("image"), "to_array": cache.array("text")}
    return mine(cache, **{**arrays, "k": K, "name": name, **changes})  # type: ignore[arg-type]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path / "cache", bad=(3, 20))


def test_neighbours_are_those_of_brute_force_best_first(cache: Cache) -> None:
    mined(cache)
    rows = cache.array("image").ok_rows()
    images, texts = (cache.array(m).features.gather_unit(cache.array(m).ok_rows()) for m in ("image", "text"))
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    reader = NeighboursReader(cache, "near")
    assert np.array_equal(reader.ids(rows), np.argsort(-scores, axis=1)[:, :K])
    assert np.abs(reader.scores(rows) - -np.sort(-scores, axis=1)[:, :K]).max() < 1e-3


def test_plain_zarr_shows_the_same_neighbours(cache: Cache) -> None:
    mined(cache)
    group = zarr.open_group(cache.layout.neighbours("near") / "neighbours.zarr", mode="r")
    rows = cache.array("image").ok_rows()
    reader = NeighboursReader(cache, "near")
    assert np.array_equal(group["ids"][:][rows], reader.ids(rows))
    assert group["ids"].shape == group["scores"].shape == (40, K)
    assert (group["ids"][:][[3, 20]] == -1).all()


def test_a_bad_row_has_no_neighbours_and_asking_for_them_is_an_error(cache: Cache) -> None:
    mined(cache)
    with pytest.raises(UsageError, match="row 20 has no feature"):
        NeighboursReader(cache, "near").ids(np.array([2, 20]))


def test_mining_again_does_only_what_is_missing(cache: Cache) -> None:
    assert mined(cache)["parts_mined"] == 3
    before = NeighboursReader(cache, "near").ids(cache.array("image").ok_rows())
    assert mined(cache)["parts_mined"] == 0
    (cache.layout.neighbours("near") / "records" / "00001.json").unlink()
    with pytest.raises(UnfinishedError, match="lack 1 of 3 parts"):
        NeighboursReader(cache, "near")
    assert mined(cache)["parts_mined"] == 1
    assert np.array_equal(NeighboursReader(cache, "near").ids(cache.array("image").ok_rows()), before)


def test_the_same_name_for_other_neighbours_is_refused_with_both_sides(cache: Cache) -> None:
    mined(cache)
    with pytest.raises(MismatchError, match="k: 6 now, 5 then"):
        mined(cache, k=6)


@pytest.mark.parametrize("k", [0, 61])
def test_more_neighbours_than_rows_are_refused_with_the_limit(cache: Cache, k: int) -> None:
    with pytest.raises(UsageError, match="use 1 to 60"):
        mined(cache, k=k)
    assert not cache.layout.all_neighbours.exists()


def test_an_unfinished_cache_is_refused_with_its_progress(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_texts=0)
    add_array(cache, "text", unit_features(60, 8), parts=(0, 1))
    with pytest.raises(UnfinishedError, match="2 of 4 parts"):
        mined(Cache.open(cache.path))


def test_arrays_of_different_teachers_cannot_be_compared(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_texts=0)
    add_array(cache, "text", unit_features(60, 8), teacher={"name": "another"})
    with pytest.raises(MismatchError, match="different teachers"):
        mined(Cache.open(cache.path))


def test_neighbours_of_other_features_are_refused(cache: Cache, tmp_path: Path) -> None:
    mined(cache)
    other = make_cache(tmp_path / "other", num_images=40, num_texts=0)
    add_array(other, "text", unit_features(60, 8, seed=9))
    shutil.copytree(cache.layout.all_neighbours, other.layout.all_neighbours)
    with pytest.raises(MismatchError, match="came from parts of"):
        NeighboursReader(Cache.open(other.path), "near")


@pytest.mark.parametrize("array", ["ids", "scores"])
def test_damaged_neighbours_are_an_error_and_verify_names_them(cache: Cache, array: str) -> None:
    mined(cache)
    assert verify_cache(cache.path) == []
    shard = cache.layout.neighbours("near") / "neighbours.zarr" / array / "c" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[9] ^= 1
    shard.write_bytes(data)
    reader = NeighboursReader(cache, "near")
    with pytest.raises(DamagedError, match="shard"):
        (reader.ids if array == "ids" else reader.scores)(np.arange(21, 30))
    assert [problem.where for problem in verify_cache(cache.path)] == [str(shard)]


def test_mining_again_after_images_were_appended_mines_their_parts_alone(cache: Cache) -> None:
    mined(cache)
    before = NeighboursReader(Cache.open(cache.path), "near").ids(np.array([0, 39]))
    append_segment(cache, "image", unit_features(5, 8, seed=3))
    grown = Cache.open(cache.path)
    result = mined(grown)
    assert result["parts_mined"] == 1
    reader = NeighboursReader(Cache.open(cache.path), "near")
    assert np.array_equal(reader.ids(np.array([0, 39])), before)
    texts = grown.array("text").features.gather_unit(np.arange(60))
    asked = grown.array("image").features.gather_unit(np.arange(48, 53))
    assert np.array_equal(reader.ids(np.arange(48, 53)), np.argsort(-(asked @ texts.T), axis=1)[:, :K])


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("part", [0, 2])
def test_a_resealed_part_of_either_array_is_refused_also_when_the_index_was_built_before(
    cache: Cache, modality: Modality, part: int
) -> None:
    build_index(cache.array("text"))
    rewrite_features(cache.array(modality), part, lambda rows: rows.__setitem__([1, 2], rows[[2, 1]]))
    with pytest.raises(DamagedError, match=rf"is not the one that was committed in part {part} of {modality} array"):
        mined(Cache.open(cache.path))
    assert not cache.layout.all_neighbours.exists()


@pytest.mark.parametrize("part", [0, 2])
def test_neighbours_that_were_refused_are_mined_under_their_name_once_the_damage_is_mended(
    cache: Cache, part: int
) -> None:
    shard = shard_path(cache.layout.feature_array("image", cache.array("image").name), part)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    with pytest.raises(DamagedError, match="its record says"):
        mined(Cache.open(cache.path))
    assert not cache.layout.all_neighbours.exists()
    shard.write_bytes(whole)
    assert verify_cache(cache.path) == []
    assert mined(Cache.open(cache.path), k=3)["parts_mined"] == 3
    assert verify_cache(cache.path) == []


@pytest.mark.parametrize(("then", "now"), [("cpu", "auto"), ("cuda", "auto"), ("cuda", "cpu")])
def test_neighbours_go_on_where_they_were_begun_whatever_the_machine_has(cache: Cache, then: str, now: str) -> None:
    mined(cache, device="cpu")
    append_segment(cache, "image", unit_features(5, 8, seed=3))
    path = cache.layout.neighbours_recipe("near")
    begun = read_sealed(path)
    path.write_bytes(readable_json(seal({**begun, "index": {**begun["index"], "device": then}})))
    grown = Cache.open(cache.path)
    if then == "cpu":
        assert mined(grown, device=now)["parts_mined"] > 0
    else:
        # Only a GPU can go on, which this process has not.
        refused = EnvironmentProblem if now == "auto" else MismatchError
        with pytest.raises(refused, match="index device cuda is not there" if now == "auto" else "'cpu' now, 'cuda'"):
            mined(grown, device=now)
