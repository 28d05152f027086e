"""Repair makes the damaged parts again, no others, and the digest is what it was."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.cache import Cache
from cache_schema.errors import DamagedError
from cache_schema.layout import shard_path
from cache_schema.repair import withdraw
from cache_schema.verify import verify_cache
from tests.corpora.damaged_files import flip_bit
from tests.corpora.extracts import digests_of, extract, extract_config
from tests.corpora.folders import contents_of
from tests.corpora.processes import result_of
from tests.corpora.small_corpus import write_sentences
from tests.corpora.stub_teacher import stub


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Forty sentences in five parts, with the features of two teachers."""
    texts = write_sentences(tmp_path / "sentences.txt", 40)
    config = extract_config(tmp_path / "cache", texts=texts, part_rows=8)
    extract(config)
    extract(replace(config, teacher=stub(version=2), add_teacher=True))
    return Cache.open(config.cache)


def test_only_the_damaged_parts_are_extracted_again_and_the_digest_is_restored(cache: Cache) -> None:
    first, second = cache.arrays("text")
    before = digests_of(cache.path)
    flip_bit(shard_path(cache.layout.features("text") / first, 1))
    cache.layout.row_hashes("text", first, 3).unlink()
    flip_bit(cache.layout.samples("text", 4))
    untouched = cache.layout.record("text", first, 0).stat().st_mtime_ns
    repaired = {(part["array"], part["part"]) for part in result_of("repair", cache.path)["repaired"]}
    assert repaired == {(first, 1), (first, 3), (first, 4), (second, 4)}
    assert verify_cache(cache.path) == []
    assert digests_of(cache.path) == before
    assert cache.layout.record("text", first, 0).stat().st_mtime_ns == untouched


def test_a_right_cache_is_left_alone(cache: Cache) -> None:
    before = contents_of(cache.path)
    assert result_of("repair", cache.path)["repaired"] == []
    assert contents_of(cache.path) == before


def test_a_damaged_plan_cannot_be_repaired_and_nothing_is_taken_back(cache: Cache) -> None:
    flip_bit(cache.layout.plan("text"))
    with pytest.raises(DamagedError, match="cannot restore it"):
        withdraw(cache, verify_cache(cache.path))
    assert cache.layout.record("text", cache.arrays("text")[0], 0).exists()
