"""`pipeline repair` reports a part that fails as extract and import do, and does the others."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cache_schema.cache import Cache
from cache_schema.layout import shard_path
from cache_schema.verify import verify_cache
from pipeline.cli import cli
from tests.corpora.foreign_features import keys_of, sentences_of, vectors, write_feature_tsv, write_text_tsv

STUB = "python:tests.corpora.stub_teacher:make?dim=8"
NAME = "tests-corpora-stub-teacher-make.v0"


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Returns a function that runs a command line in an empty folder, quietly, for its JSON."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(cli, [*args, "--quiet", "--json"])


def damage(cache: Cache, array: str, *parts: int) -> None:
    for part in parts:
        path = shard_path(cache.layout.features("text") / array, part)
        path.write_bytes(bytes(path.stat().st_size))


def join_last_lines(path: Path) -> None:
    """Takes the line feed away between the last two lines, and keeps size and time, as a failing disk would."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[data.rindex(b"\n", 0, len(data) - 1)] = ord(" ")
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_part_that_cannot_be_extracted_again_is_named_and_the_others_are(invoke: Callable[..., Result]) -> None:
    Path("s.txt").write_text("".join(f"sentence {number}\n" for number in range(40)))
    extract = ["extract", "--texts", "s.txt", "--teacher", STUB, "--cache", "cache", "--part-rows", "8", "--no-index"]
    assert invoke(*extract).exit_code == 0
    cache = Cache.open("cache")
    digest = cache.array("text").digest()
    damage(cache, NAME, 1, 3, 4)
    join_last_lines(Path("s.txt"))
    failed = invoke("repair", "cache")
    assert failed.exit_code == 4, failed.stderr
    result = json.loads(failed.stdout)
    assert [part["part"] for part in result["repaired"]] == [1, 3]
    assert [(part["modality"], part["part"], part["exit_code"]) for part in result["failed_parts"]] == [("text", 4, 4)]
    assert f"1 of 3 parts failed (text part 4: {result['failed_parts'][0]['error']}): mend" in failed.stderr
    assert "next" not in result and "s.txt ends after" in failed.stderr
    Path("s.txt").write_text("".join(f"sentence {number}\n" for number in range(40)))
    assert invoke("repair", "cache").exit_code == 0
    assert Cache.open("cache").array("text").digest() == digest and verify_cache(Path("cache")) == []


def test_import_and_repair_of_an_import_name_a_failed_part_in_the_same_words(invoke: Callable[..., Result]) -> None:
    write_text_tsv(Path("t.tsv"), keys_of(12), sentences_of(12))
    write_feature_tsv(Path("f.tsv"), keys_of(12), vectors(12))
    sources = ["--text-features", "f.tsv", "--texts", "t.tsv", "--teacher-name", "clip"]
    asked = ["import", *sources, "--cache", "cache", "--part-rows", "4", "--no-index"]
    assert invoke(*asked).exit_code == 0
    cache = Cache.open("cache")
    damage(cache, "clip.v0", 1, 2)
    join_last_lines(Path("t.tsv"))
    repaired = invoke("repair", "cache")
    assert repaired.exit_code == 4, repaired.stderr
    assert [part["part"] for part in json.loads(repaired.stdout)["repaired"]] == [1]
    imported = invoke(*asked)
    assert imported.exit_code == 4 and json.loads(imported.stdout)["imported_rows"] == 0
    (part,) = json.loads(imported.stdout)["failed_parts"]
    assert part == json.loads(repaired.stdout)["failed_parts"][0] | {"error": part["error"]}
    assert (part["modality"], part["part"], part["exit_code"]) == ("text", 2, 4)
    for failed in (repaired, imported):
        assert f"1 of {2 if failed is repaired else 1} parts failed (text part 2: {part['error']})" in failed.stderr


def test_a_right_cache_has_nothing_repaired_and_nothing_failed(invoke: Callable[..., Result]) -> None:
    Path("s.txt").write_text("a\nb\n")
    assert invoke("extract", "--texts", "s.txt", "--teacher", STUB, "--cache", "cache", "--no-index").exit_code == 0
    result = json.loads(invoke("repair", "cache").stdout)
    assert (result["repaired"], result["failed_parts"], result["problems"]) == ([], [], [])
    assert result["next"].startswith("pipeline inspect ")
