"""Neighbours on disk: what was written comes back row for row, and only for the two arrays it was mined between."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema.binding import Binding
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, UnfinishedError, UsageError
from cache_schema.json_file import read_json, read_sealed, readable_json, seal
from cache_schema.layout import Modality
from cache_schema.neighbours import NeighboursReader, NeighboursRecipe, NeighboursWriter
from cache_schema.verify import verify_cache
from tests.corpora.by_hand import scored, write_neighbours
from tests.corpora.resealed import reseal
from tests.corpora.tiny_cache import append_segment, make_cache, unit_features

NUM_IMAGES, NUM_TEXTS, PART_ROWS, K = 40, 60, 16, 3


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache without neighbours: 3 parts of images, rows 3 and 20 bad."""
    path = tmp_path_factory.mktemp("neighbours") / "cache"
    return make_cache(path, num_images=NUM_IMAGES, num_texts=NUM_TEXTS, part_rows=PART_ROWS, bad=(3, 20)).path


@pytest.fixture
def cache(empty: Path, tmp_path: Path) -> Cache:
    return Cache.open(shutil.copytree(empty, tmp_path / "cache"))


def recipe_of(cache: Cache, *, k: int = K, index: str = "exact") -> NeighboursRecipe:
    ends = (Binding.of(cache.array(modality)) for modality in ("image", "text"))
    return NeighboursRecipe(*ends, k, {"kind": index})


def cosines(ids: np.ndarray) -> np.ndarray:
    images, texts = (
        features / np.linalg.norm(features, axis=1, keepdims=True)
        for features in (unit_features(n, 8, seed=s).astype(np.float64) for s, n in enumerate((NUM_IMAGES, NUM_TEXTS)))
    )
    return np.einsum("nd,nkd->nk", images, texts[ids]).astype(np.float16)


def drawn(seed: int, *, k: int = K) -> tuple[np.ndarray, np.ndarray]:
    """Some ids for every image row, and the scores that a miner would give them."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, NUM_TEXTS, (NUM_IMAGES, k))
    scores = cosines(ids)
    ids[[3, 20]], scores[[3, 20]] = -1, np.nan
    return ids, scores


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 7), asked=st.lists(st.integers(0, NUM_IMAGES - 1), max_size=60))
def test_every_row_comes_back_as_written_in_the_order_asked(
    empty: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, k: int, asked: list[int]
) -> None:
    cache = Cache.open(shutil.copytree(empty, tmp_path_factory.mktemp("round") / "cache"))
    ids, scores = drawn(seed, k=k)
    write_neighbours(cache, "near", ids, scores)
    rows = np.array([row for row in asked if row not in (3, 20)], np.int64)
    reader = NeighboursReader(cache, "near")
    assert reader.k == k
    assert (reader.ids(rows).dtype, reader.scores(rows).dtype) == (np.int64, np.float16)
    assert np.array_equal(reader.ids(rows), ids[rows])
    assert np.array_equal(reader.scores(rows), scores[rows])


@pytest.mark.parametrize("row", [3, 20])
def test_a_bad_row_has_no_neighbours_and_asking_for_them_is_an_error(cache: Cache, row: int) -> None:
    write_neighbours(cache, "near", *drawn(0))
    with pytest.raises(UsageError, match=f"row {row} has no feature"):
        NeighboursReader(cache, "near").ids(np.array([0, row, 1]))


def test_a_neighbour_outside_the_other_array_is_refused(cache: Cache) -> None:
    ids, scores = drawn(0)
    ids[7, 1] = NUM_TEXTS
    write_neighbours(cache, "near", ids, scores)
    reader = NeighboursReader(cache, "near")
    assert np.array_equal(reader.ids(np.array([16, 39])), ids[[16, 39]])
    with pytest.raises(DamagedError, match=r"of part 0 are not those that were mined \(they name row 60 of text array"):
        reader.ids(np.array([0]))


@pytest.mark.parametrize("name", ["../near", "Near", "", "near/er", "."])
def test_a_name_that_could_leave_the_folder_is_refused_and_nothing_is_written(cache: Cache, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a set of neighbours"):
        NeighboursWriter(cache, name, recipe_of(cache))
    assert not cache.layout.all_neighbours.exists()


def test_an_unknown_name_lists_the_known_ones_and_the_nearest(cache: Cache) -> None:
    write_neighbours(cache, "nearest", *drawn(0))
    with pytest.raises(UsageError, match=r"'nearst' \(did you mean 'nearest'\?\); known: nearest"):
        NeighboursReader(cache, "nearst")


def test_the_same_name_with_another_recipe_is_refused_with_both_sides(cache: Cache) -> None:
    write_neighbours(cache, "near", *drawn(0))
    with pytest.raises(MismatchError, match=r"k: 4 now, 3 then"):
        NeighboursWriter(cache, "near", recipe_of(cache, k=4))
    with pytest.raises(MismatchError, match=r"index\.kind: 'guess' now, 'exact' then"):
        NeighboursWriter(cache, "near", recipe_of(cache, index="guess"))


def test_nothing_is_written_before_the_first_part_is_committed(cache: Cache) -> None:
    NeighboursWriter(cache, "near", recipe_of(cache)).committed()
    assert not cache.layout.all_neighbours.exists()


def test_a_recipe_without_a_part_gives_way_to_another(cache: Cache) -> None:
    folder = write_neighbours(cache, "near", *drawn(0))
    for record in (folder / "records").iterdir():
        record.unlink()
    ids, scores = drawn(0, k=4)
    write_neighbours(cache, "near", ids, scores)
    assert np.array_equal(NeighboursReader(cache, "near").ids(np.arange(21, 40)), ids[21:40])
    assert verify_cache(cache.path) == []


def test_a_part_without_record_is_missing_until_it_is_committed_again(cache: Cache) -> None:
    ids, scores = drawn(0)
    folder = write_neighbours(cache, "near", ids, scores)
    (folder / "records" / "00001.json").unlink()
    with pytest.raises(UnfinishedError, match="lack 1 of 3 parts"):
        NeighboursReader(cache, "near")
    writer = NeighboursWriter(cache, "near", recipe_of(cache))
    assert writer.committed() == {0, 2}
    writer.commit(1, ids[16:32], scores[16:32])
    assert np.array_equal(NeighboursReader(cache, "near").ids(np.arange(21, 40)), ids[21:40])


def test_a_part_of_other_neighbours_is_refused_though_its_bytes_are_whole(cache: Cache) -> None:
    folder = write_neighbours(cache, "near", *drawn(0))
    other = write_neighbours(cache, "other", *drawn(1), index="guess")
    for name in ("records/00001.json", "neighbours.zarr/ids/c/1/0", "neighbours.zarr/scores/c/1/0"):
        shutil.copy(other / name, folder / name)
    with pytest.raises(DamagedError, match=r"00001\.json is not the record of part 1 of these neighbours"):
        NeighboursReader(cache, "near")
    with pytest.raises(DamagedError, match="not the record of part 1"):
        NeighboursWriter(cache, "near", recipe_of(cache)).committed()
    assert [problem.where for problem in verify_cache(cache.path)] == [str(folder)]


def test_a_record_under_another_number_is_refused(cache: Cache) -> None:
    folder = write_neighbours(cache, "near", *drawn(0))
    shutil.copy(folder / "records" / "00000.json", folder / "records" / "00001.json")
    with pytest.raises(DamagedError, match="not the record of part 1"):
        NeighboursReader(cache, "near")


@pytest.mark.parametrize("file", ["recipe.json", "records/00002.json"])
@pytest.mark.parametrize("fault", ["cut", "empty", "edited"])
def test_a_damaged_recipe_or_record_is_named(cache: Cache, file: str, fault: str) -> None:
    path = write_neighbours(cache, "near", *drawn(0)) / file
    if fault == "edited":
        value = read_json(path)
        path.write_bytes(readable_json({**value, "k" if "k" in value else "num_rows": 99}))
    else:
        path.write_bytes(path.read_bytes()[: -5 if fault == "cut" else 0])
    with pytest.raises(DamagedError, match=path.name):
        NeighboursReader(cache, "near")


@pytest.mark.parametrize("array", ["ids", "scores"])
@pytest.mark.parametrize("fault", ["gone", "empty", "cut", "flipped", "another part's"])
def test_a_damaged_shard_is_refused_when_it_is_read(cache: Cache, array: str, fault: str) -> None:
    shard = write_neighbours(cache, "near", *drawn(0)) / "neighbours.zarr" / array / "c" / "1" / "0"
    data = shard.read_bytes()
    if fault == "gone":
        shard.unlink()
    else:
        wrong = {
            "empty": b"",
            "cut": data[:-1],
            "flipped": bytes([data[0] ^ 1]) + data[1:],
            "another part's": shard.parents[1].joinpath("2", "0").read_bytes(),
        }
        shard.write_bytes(wrong[fault])
    reader = NeighboursReader(cache, "near")
    read = reader.ids if array == "ids" else reader.scores
    assert read(np.array([0, 39])).shape == (2, K)
    with pytest.raises(DamagedError, match="shard"):
        read(np.array([21]))


def test_neighbours_of_an_array_that_has_changed_since_are_refused(cache: Cache) -> None:
    path = write_neighbours(cache, "near", *drawn(0)) / "recipe.json"
    value = read_sealed(path)
    value["to"]["digest"] = "0" * 64
    path.write_bytes(readable_json(seal(value)))
    with pytest.raises(MismatchError, match=r"came from parts of text imaginary\.v0 with digest 000000000000"):
        NeighboursReader(cache, "near")


def grow(cache: Cache, modality: Modality, num_samples: int) -> Cache:
    """Appends a segment of `num_samples` random features to the array of `modality`."""
    append_segment(cache, modality, unit_features(num_samples, 8, seed=num_samples))
    return Cache.open(cache.path)


def test_sentences_that_are_appended_leave_neighbours_as_they_are(cache: Cache) -> None:
    ids, scores = drawn(0)
    write_neighbours(cache, "near", ids, scores)
    grown = grow(cache, "text", 5)
    assert np.array_equal(NeighboursReader(grown, "near").ids(np.array([0, 39])), ids[[0, 39]])
    assert verify_cache(grown.path) == []
    with pytest.raises(MismatchError, match=r"to\.digest: .* now, .* then\): use another name"):
        NeighboursWriter(grown, "near", recipe_of(grown))


def test_images_that_are_appended_lack_their_part_alone(cache: Cache) -> None:
    ids, scores = drawn(0)
    write_neighbours(cache, "near", ids, scores)
    grown = grow(grow(cache, "image", 5), "image", 4)
    with pytest.raises(UnfinishedError, match=r"lack 2 of 5 parts: run `pipeline mine` again"):
        NeighboursReader(grown, "near")
    writer = NeighboursWriter(grown, "near", recipe_of(grown))
    assert writer.committed() == {0, 1, 2}
    rows = np.tile(ids[:1], (grown.plan("image").row_end, 1))
    again_ids, again_scores = scored(grown.array("image"), grown.array("text"), rows)
    writer.commit(3, again_ids[48:53], again_scores[48:53])
    again = NeighboursWriter(grown, "near", recipe_of(grown))
    assert again.committed() == {0, 1, 2, 3}
    again.commit(4, again_ids[64:68], again_scores[64:68])
    reader = NeighboursReader(grown, "near")
    assert np.array_equal(reader.ids(np.array([21, 39, 48, 67])), ids[[21, 39, 0, 0]])
    assert verify_cache(grown.path) == []


def test_appended_images_are_not_mined_with_another_k(cache: Cache) -> None:
    write_neighbours(cache, "near", *drawn(0))
    grown = grow(cache, "image", 5)
    with pytest.raises(MismatchError, match="k: 4 now, 3 then"):
        NeighboursWriter(grown, "near", recipe_of(grown, k=4))


def test_images_that_changed_and_grew_are_refused(cache: Cache, tmp_path: Path) -> None:
    folder = write_neighbours(cache, "near", *drawn(0))
    other = make_cache(tmp_path / "other", num_images=NUM_IMAGES, num_texts=NUM_TEXTS, part_rows=PART_ROWS, bad=(3, 21))
    shutil.copytree(folder, other.layout.neighbours("near"))
    grown = grow(other, "image", 5)
    with pytest.raises(MismatchError, match="came from parts of image"):
        NeighboursWriter(grown, "near", recipe_of(grown))


@pytest.mark.parametrize(
    "changes",
    [{"files": None}, {"files": {}}, {"chunk_crc32c": {"ids": [1]}}, {"chunk_crc32c": {"ids": 1, "scores": 2}}],
    ids=str,
)
def test_a_resealed_record_of_other_fields_is_refused(cache: Cache, changes: dict[str, object]) -> None:
    write_neighbours(cache, "near", *drawn(0))
    reseal(cache.layout.neighbours_record("near", 1), **changes)
    with pytest.raises(DamagedError, match=r"00001\.json is not the record of part 1 of these neighbours"):
        NeighboursReader(cache, "near")


@pytest.mark.parametrize("k", ["3", 3.0, 0, -1, True, None], ids=str)
def test_a_recipe_of_another_k_than_a_number_is_refused(cache: Cache, k: object) -> None:
    write_neighbours(cache, "near", *drawn(0))
    reseal(cache.layout.neighbours_recipe("near"), k=k)
    with pytest.raises(DamagedError, match="is not a recipe of neighbours"):
        NeighboursReader(cache, "near")
