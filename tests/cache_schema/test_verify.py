"""`verify` names every fault that is planted, and nothing in a cache that is right."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cache_schema.cache import Cache
from cache_schema.errors import EnvironmentProblem
from cache_schema.layout import shard_path
from cache_schema.verify import verify_cache
from tests.corpora.damaged_files import DAMAGE, flip_bit
from tests.corpora.open_files import few_open_files
from tests.corpora.resealed import rewrite_features
from tests.corpora.tiny_cache import make_cache

ARRAY = "imaginary.v0"
UNREADABLE = Path("/proc/self/mem")
"""Reading its beginning is an I/O error (EIO), as on a failing disk."""


@pytest.fixture(scope="module")
def good_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("good") / "cache", bad=(3,)).path


@pytest.fixture
def cache(good_cache: Path, tmp_path: Path) -> Cache:
    return Cache.open(shutil.copytree(good_cache, tmp_path / "cache"))


def test_a_right_cache_has_no_problems(cache: Cache) -> None:
    assert verify_cache(cache.path) == []


def test_one_damaged_record_hides_no_other_damage_and_each_names_its_part(cache: Cache) -> None:
    flip_bit(parts_of(cache, 0)["record"])
    flip_bit(parts_of(cache, 2)["shard"])
    damaged = {problem.part.part for problem in verify_cache(cache.path) if problem.part is not None}
    assert damaged == {0, 2}


def parts_of(cache: Cache, part: int) -> dict[str, Path]:
    layout = cache.layout
    return {
        "shard": shard_path(layout.features("image") / ARRAY, part),
        "samples": layout.samples("image", part),
        "rows": layout.row_hashes("image", ARRAY, part),
        "record": layout.record("image", ARRAY, part),
        "recipe": layout.recipe("image", ARRAY),
        "plan": layout.plan("image"),
        "metadata": layout.features("image") / ARRAY / "zarr.json",
    }


@pytest.mark.parametrize("fault", [*(fault for fault in DAMAGE if fault != "deleted"), "another part's"])
@pytest.mark.parametrize("kind", ["shard", "samples", "rows", "record", "recipe", "plan", "metadata"])
def test_a_damaged_file_is_named(cache: Cache, kind: str, fault: str) -> None:
    path, other = parts_of(cache, 1)[kind], parts_of(cache, 0)[kind]
    if fault != "another part's":
        DAMAGE[fault](path)
    elif path == other:
        pytest.skip("there is one of it in an array")
    else:
        shutil.copy(other, path)
    problems = verify_cache(cache.path)
    assert problems, "the damage went unseen"
    named = " ".join(problem.where + problem.what for problem in problems)
    part_files = {str(p) for name, p in parts_of(cache, 1).items() if name in ("shard", "samples", "rows", "record")}
    assert str(path) in named or (str(path) in part_files and any(p in named for p in part_files))


@pytest.mark.parametrize("kind", ["shard", "samples", "rows", "plan", "recipe", "metadata"])
def test_a_deleted_file_is_named(cache: Cache, kind: str) -> None:
    path = parts_of(cache, 1)[kind]
    path.unlink()
    assert any(str(path) in problem.where + problem.what for problem in verify_cache(cache.path))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: rows.__setitem__(5, np.nan), "row 5"),
        (lambda rows: rows.__setitem__((5, 0), np.inf), "row 5"),
        (lambda rows: rows.__setitem__(5, 0), "row 5 does not have norm 1"),
        (lambda rows: rows.__setitem__(3, rows[4]), "row 3"),
        (lambda rows: rows.__setitem__([4, 5], rows[[5, 4]]), "hashes of the part's rows"),
    ],
    ids=["a feature lost", "an infinity", "a zero vector", "a feature for a bad row", "two rows swapped"],
)
def test_a_wrong_row_under_right_checksums_is_named(cache: Cache, change, what: str) -> None:
    rewrite_features(cache.array("image"), 0, change)
    assert any(what in problem.what for problem in verify_cache(cache.path))


def test_a_machine_without_open_files_left_is_no_damage_to_the_cache(cache: Cache) -> None:
    with few_open_files(0), pytest.raises(EnvironmentProblem, match="Too many open files"):
        verify_cache(cache.path)
    assert verify_cache(cache.path) == []


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that exists and cannot be read")
@pytest.mark.parametrize("kind", ["shard", "rows", "record"])
def test_a_file_that_cannot_be_read_now_stops_verify_and_is_no_problem_that_repair_would_mend(
    cache: Cache, kind: str
) -> None:
    path = parts_of(cache, 1)[kind]
    path.unlink()
    path.symlink_to(UNREADABLE)
    with pytest.raises(EnvironmentProblem, match=r"cannot read .*Input/output error"):
        verify_cache(cache.path)
