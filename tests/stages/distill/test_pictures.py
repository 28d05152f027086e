"""Pictures are kept in memory where they fit."""

import pytest

from cache_schema.cache import Cache
from stages.distill.pictures import fit_in_memory
from tests.corpora.small_corpus import small_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("corpus"))


def test_whether_pictures_fit_in_memory_is_judged_from_the_sample_tables(cache):
    rows = cache.array("image").ok_rows()
    assert fit_in_memory(cache, rows, len(rows) * 40 * 40 * 4)
    assert not fit_in_memory(cache, rows, len(rows) * 40 * 40 * 4 - 1)
