"""Caches written by released formats stay readable: the files in tests/golden are never written again."""

import numpy as np
import pytest

from cache_schema.cache import Cache
from cache_schema.neighbours import NeighboursReader
from cache_schema.selections import read_selection
from cache_schema.verify import verify_cache
from tests.corpora.golden import GOLDEN

# As printed when the files were made.
DIGESTS = {
    "format-1": {
        "image": "884728540f234ba4222ca275c5f428b558ee640bd560418ff0188fcede1964d1",
        "text": "3528dfc286b1b9c61f5aa915676d348d7a3f9e3414e85bb6d14f3f020ec8a8d2",
    },
    "run-1/cache": {
        "image": "c233d7f76143758aede2d5c3bd8e7a4b1f40501b80a91e76a49f8b29863bf9cd",
        "text": "cd72238c9cd3f72ae7706a480eb3a201c78d53bcffb820410843b3b7fb5b76d1",
    },
}


def test_every_golden_cache_has_an_expectation() -> None:
    assert {str(path.parent.relative_to(GOLDEN)) for path in GOLDEN.rglob("cache.json")} == set(DIGESTS)


@pytest.mark.parametrize("name", DIGESTS)
def test_a_golden_cache_has_its_digests_and_no_problems(name: str) -> None:
    cache = Cache.open(GOLDEN / name)
    assert {modality: cache.array(modality).digest() for modality in cache.modalities} == DIGESTS[name]
    assert verify_cache(cache.path) == []


def test_format_1_holds_the_features_neighbours_and_selection_it_was_made_of() -> None:
    cache = Cache.open(GOLDEN / "format-1")
    drawn = np.random.default_rng(0).standard_normal((6, 4))
    expected = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)
    rows = cache.array("image").ok_rows()
    assert rows.tolist() == [0, 1, 3, 4, 5]
    assert np.array_equal(cache.array("image").features.gather(rows), expected[rows])
    assert cache.texts(np.array([6, 0])) == ["sentence 6", "sentence 0"]
    assert NeighboursReader(cache, "near").ids(np.array([0, 5])).tolist() == [[5, 2], [1, 2]]
    assert read_selection(cache, "some").rows.tolist() == [0, 3, 5]
