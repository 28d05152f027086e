"""`pipeline repair` makes the damaged parts again, no others; one that fails is reported, and the others are done."""

import json
import os
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
from tests.corpora.foreign_features import keys_of, sentences_of, vectors, write_feature_tsv, write_npy, write_text_tsv
from tests.corpora.processes import result_of
from tests.corpora.small_corpus import write_sentences
from tests.corpora.stub_teacher import STUB, stub

JSON = ("--quiet", "--json")


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


def zero(cache: Cache, array: str, *parts: int) -> None:
    for part in parts:
        path = shard_path(cache.layout.features("text") / array, part)
        path.write_bytes(bytes(path.stat().st_size))


def join_last_lines(path: Path) -> None:
    """Takes the line feed away between the last two lines, and keeps size and time, as a failing disk would."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[data.rindex(b"\n", 0, len(data) - 1)] = ord(" ")
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_lines(path: str, numbers: range) -> None:
    Path(path).write_text("".join(f"sentence {number}\n" for number in numbers))


def test_a_part_that_cannot_be_extracted_again_is_named_and_the_others_are(invoke: Callable[..., Result]) -> None:
    write_lines("one.txt", range(24))
    write_lines("two.txt", range(24, 40))
    sources = ["--texts", "one.txt", "--texts", "two.txt", "--teacher", STUB]
    asked = ["extract", *sources, "--cache", "cache", "--part-rows", "8", "--no-index", *JSON]
    assert invoke(*asked).exit_code == 0
    cache = Cache.open("cache")
    digest = cache.array("text").digest()
    zero(cache, cache.arrays("text")[0], 1, 2, 4)
    join_last_lines(Path("two.txt"))
    failed = invoke("repair", "cache", *JSON)
    assert failed.exit_code == 4, failed.stderr
    result = json.loads(failed.stdout)
    assert [part["part"] for part in result["repaired"]] == [1, 2]
    assert [(part["modality"], part["part"], part["exit_code"]) for part in result["failed_parts"]] == [("text", 4, 4)]
    assert f"1 of 3 parts failed (text part 4: {result['failed_parts'][0]['error']}): mend" in failed.stderr
    assert "next" not in result and "two.txt changed since it was planned" in failed.stderr
    write_lines("two.txt", range(24, 40))
    assert invoke("repair", "cache", *JSON).exit_code == 0
    assert Cache.open("cache").array("text").digest() == digest and verify_cache(Path("cache")) == []


def test_import_and_repair_of_an_import_name_a_failed_part_in_the_same_words(invoke: Callable[..., Result]) -> None:
    write_text_tsv(Path("one.tsv"), keys_of(12)[:8], sentences_of(12)[:8])
    write_text_tsv(Path("two.tsv"), keys_of(12)[8:], sentences_of(12)[8:])
    write_feature_tsv(Path("f.tsv"), keys_of(12), vectors(12))
    sources = ["--text-features", "f.tsv", "--texts", "one.tsv", "--texts", "two.tsv", "--teacher-name", "clip"]
    asked = ["import", *sources, "--cache", "cache", "--part-rows", "4", "--no-index", *JSON]
    assert invoke(*asked).exit_code == 0
    cache = Cache.open("cache")
    zero(cache, "clip.v0", 1, 2)
    join_last_lines(Path("two.tsv"))
    repaired = invoke("repair", "cache", *JSON)
    assert repaired.exit_code == 4, repaired.stderr
    assert [part["part"] for part in json.loads(repaired.stdout)["repaired"]] == [1]
    imported = invoke("import", "--cache", "cache", "--no-index", *JSON)
    assert imported.exit_code == 4 and json.loads(imported.stdout)["imported_rows"] == 0
    (part,) = json.loads(imported.stdout)["failed_parts"]
    assert part == json.loads(repaired.stdout)["failed_parts"][0] | {"error": part["error"]}
    assert (part["modality"], part["part"], part["exit_code"]) == ("text", 2, 4)
    for failed in (repaired, imported):
        assert f"1 of {2 if failed is repaired else 1} parts failed (text part 2: {part['error']})" in failed.stderr


def test_a_right_cache_has_nothing_repaired_and_nothing_failed(invoke: Callable[..., Result]) -> None:
    Path("s.txt").write_text("a\nb\n")
    assert (
        invoke("extract", "--texts", "s.txt", "--teacher", STUB, "--cache", "cache", "--no-index", *JSON).exit_code == 0
    )
    result = json.loads(invoke("repair", "cache", *JSON).stdout)
    assert (result["repaired"], result["failed_parts"], result["problems"]) == ([], [], [])
    assert result["next"].startswith("pipeline inspect ")
