"""Neighbours that cannot be those of the features that they name are refused, although every checksum is right."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError
from cache_schema.json_file import read_sealed
from cache_schema.neighbours import NeighboursReader
from cache_schema.shards import RowFormat
from cache_schema.verify import verify_cache
from tests.corpora.by_hand import scored, write_neighbours
from tests.corpora.resealed import reseal
from tests.corpora.tiny_cache import add_array, make_cache, unit_features

NUM_IMAGES, NUM_TEXTS, PART_ROWS, K = 40, 60, 16, 3
Mined = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """3 parts of images, rows 3 and 20 bad."""
    path = tmp_path / "cache"
    return make_cache(path, num_images=NUM_IMAGES, num_texts=NUM_TEXTS, part_rows=PART_ROWS, bad=(3, 20))


@pytest.fixture
def mined(cache: Cache) -> Mined:
    """Ids and scores of the neighbours `near` of `cache`."""
    ids = np.random.default_rng(0).integers(0, NUM_TEXTS, (NUM_IMAGES, K))
    found = scored(cache.array("image"), cache.array("text"), ids)
    write_neighbours(cache, "near", *found)
    return found


def test_neighbours_that_are_right_are_read_and_nothing_is_reported(cache: Cache, mined: Mined) -> None:
    rows = cache.array("image").ok_rows()
    assert np.array_equal(NeighboursReader(cache, "near").ids(rows), mined[0][rows])
    assert verify_cache(cache.path) == []


def rewrite(cache: Cache, part: int, ids: np.ndarray | None = None, scores: np.ndarray | None = None) -> None:
    """Replaces shards of one part under a record that is sealed over them."""
    record = cache.layout.neighbours_record("near", part)
    value = read_sealed(record)
    given = {"ids": (ids, "int64"), "scores": (scores, "float16")}
    for array, (rows, dtype) in given.items():
        if rows is not None:
            shard = RowFormat(PART_ROWS, K, dtype).encode_shard(rows.astype(dtype))
            atomic.publish_bytes(cache.layout.neighbours("near") / f"neighbours.zarr/{array}/c/{part}/0", shard.data)
            value["files"][array] = hashlib.sha256(shard.data).hexdigest()
            value["chunk_crc32c"][array] = list(shard.chunk_crc32c)
    reseal(record, **value)


@pytest.mark.parametrize("which", ["ids", "scores", "both"])
def test_shards_of_two_parts_exchanged_under_resealed_records_are_refused(
    cache: Cache, mined: Mined, which: str
) -> None:
    ids, scores = mined
    for part, other in ((0, 16), (1, 0)):
        rows = slice(other, other + PART_ROWS)
        rewrite(cache, part, None if which == "scores" else ids[rows], None if which == "ids" else scores[rows])
    reader = NeighboursReader(cache, "near")
    for read in (reader.ids, reader.scores):
        with pytest.raises(DamagedError, match=r"of part 1 are not those that were mined \(.*\): mine them again"):
            read(np.array([21]))
    records = [str(cache.layout.neighbours_record("near", part)) for part in (0, 1)]
    assert [problem.where for problem in verify_cache(cache.path)] == records


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ids, scores: ids.__setitem__((5, 2), NUM_TEXTS), "they name row 60 of text array"),
        (lambda ids, scores: ids.__setitem__((5, 2), -1), "they name row -1 of text array"),
        (lambda ids, scores: ids.__setitem__((5, 2), 2**40), "they name row 1099511627776 of text array"),
        (lambda ids, scores: ids.__setitem__(5, -1), r"row 5 has no neighbours, and .* has a feature of it"),
        (lambda ids, scores: ids.__setitem__(3, ids[5]), r"row 3 has neighbours, and .* has no feature of it"),
        (
            lambda ids, scores: scores.__setitem__(0, np.nan),
            r"row 0 and its neighbour .* cosine .*, stored is nan",
        ),
        (lambda ids, scores: scores.__setitem__(0, 0.99), r"row 0 and its neighbour .* cosine .*, stored is 0\.990"),
    ],
    ids=["beyond the end", "none", "far beyond", "a row without", "a bad row with", "not finite", "another score"],
)
def test_neighbours_that_cannot_have_been_mined_are_refused_and_reported(
    cache: Cache, mined: Mined, change: Callable[[np.ndarray, np.ndarray], None], said: str
) -> None:
    ids, scores = mined
    ids, scores = ids[:PART_ROWS].copy(), scores[:PART_ROWS].copy()
    change(ids, scores)
    rewrite(cache, 0, ids, scores)
    with pytest.raises(DamagedError, match=said):
        NeighboursReader(cache, "near").ids(np.array([1]))
    assert [problem.where for problem in verify_cache(cache.path)] == [str(cache.layout.neighbours_record("near", 0))]


def test_a_sentence_without_a_feature_is_nobodys_neighbour(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", num_texts=0)
    add_array(cache, "text", unit_features(NUM_TEXTS, 8, seed=1), bad=(9,))
    cache = Cache.open(cache.path)
    ids, scores = scored(cache.array("image"), cache.array("text"), np.full((NUM_IMAGES, K), 8))
    write_neighbours(cache, "near", np.where(np.arange(K) == 1, 9, ids), scores)
    with pytest.raises(DamagedError, match="they name row 9 of text array"):
        NeighboursReader(cache, "near").ids(np.array([1]))
