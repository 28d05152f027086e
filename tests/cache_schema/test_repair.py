"""Repair makes the damaged parts again, no others, and the digest is what it was."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.cache import Cache
from cache_schema.errors import DamagedError
from cache_schema.layout import shard_path
from cache_schema.repair import withdraw
from cache_schema.verify import verify_cache
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job

ROOT = Path(__file__).parents[2]
TEACHER = "python:tests.corpora.stub_teacher:make?dim=8"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    (tmp_path / "sentences.txt").write_text("".join(f"sentence {i}\n" for i in range(40)))
    config = ExtractConfig(
        cache=tmp_path / "cache", texts=(str(tmp_path / "sentences.txt"),), teacher=TEACHER, part_rows=8, index=False
    )
    for settings in (config, replace(config, teacher=f"{TEACHER}&version=2", add_teacher=True)):
        with open_job(settings) as job, job.make_worker() as worker:
            for task in job.tasks:
                worker(task)
    return Cache.open(config.cache)


def repair(cache: Cache) -> dict:
    command = [sys.executable, "-m", "pipeline", "repair", str(cache.path), "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def test_only_the_damaged_parts_are_extracted_again_and_the_digest_is_restored(cache: Cache) -> None:
    first, second = cache.arrays("text")
    digests = [cache.array("text", name).digest() for name in (first, second)]
    flip(shard_path(cache.layout.features("text") / first, 1))
    cache.layout.row_hashes("text", first, 3).unlink()
    flip(cache.layout.samples("text", 4))
    untouched = cache.layout.record("text", first, 0).stat().st_mtime_ns
    repaired = {(part["array"], part["part"]) for part in repair(cache)["repaired"]}
    assert repaired == {(first, 1), (first, 3), (first, 4), (second, 4)}
    assert verify_cache(cache.path) == []
    assert [Cache.open(cache.path).array("text", name).digest() for name in (first, second)] == digests
    assert cache.layout.record("text", first, 0).stat().st_mtime_ns == untouched


def test_a_right_cache_is_left_alone(cache: Cache) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.path.rglob("*") if path.is_file()}
    assert repair(cache)["repaired"] == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_damaged_plan_cannot_be_repaired_and_nothing_is_taken_back(cache: Cache) -> None:
    flip(cache.layout.plan("text"))
    with pytest.raises(DamagedError, match="cannot restore it"):
        withdraw(cache, verify_cache(cache.path))
    assert cache.layout.record("text", cache.arrays("text")[0], 0).exists()
