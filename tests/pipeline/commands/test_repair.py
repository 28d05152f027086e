"""`pipeline repair` makes the damaged parts again, no others, and the digest is what it was."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from cache_schema.cache import Cache
from cache_schema.layout import shard_path
from cache_schema.verify import verify_cache
from tests.corpora.damaged_files import flip_bit
from tests.corpora.extracts import digests_of, extract, extract_config
from tests.corpora.folders import contents_of
from tests.corpora.foreign_features import keys_of, sentences_of, vectors, write_npy
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


def test_repair_imports_damaged_parts_again(invoke: Callable[..., Result]) -> None:
    features = write_npy(Path("f.npy"), keys_of(40), sentences_of(40), vectors(40))
    options = ("--teacher-name", "clip", "--part-rows", 16, "--quiet", "--no-index")
    assert invoke("import", "--cache", "cache", "--text-features", features, *options).exit_code == 0
    before = Cache.open("cache").array("text").digest()
    shard = Path("cache/text/features.zarr/clip.v0/c/1/0")
    shard.write_bytes(bytes(shard.stat().st_size))
    assert invoke("verify", "cache", "--quiet").exit_code == 4
    repaired = invoke("repair", "cache", "--quiet", "--json")
    assert repaired.exit_code == 0, repaired.stderr
    assert [part["part"] for part in json.loads(repaired.stdout)["repaired"]] == [1]
    assert Cache.open("cache").array("text").digest() == before
