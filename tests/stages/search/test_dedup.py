"""Duplicates among real pictures and sentences are found, the first of each group stays, the cache does not change."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cache_schema.cache import Cache, create_cache
from cache_schema.errors import LockedError, MismatchError, UnfinishedError
from cache_schema.selections import read_selection, selection_names
from cache_schema.verify import verify_cache
from pipeline.cli import cli
from stages.search.dedup import dedup
from tests.corpora.folders import contents_of
from tests.corpora.repeated_corpus import repeated_cache
from tests.corpora.tiny_cache import add_array, unit_features


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return repeated_cache(tmp_path_factory.mktemp("corpus"))


def content(cache: Cache) -> dict[str, str]:
    """Returns the SHA-256 of every file of the cache but selections and lock."""
    return {name: sha256 for name, sha256 in contents_of(cache.path).items() if not name.startswith("selections/")}


def kept_keys(cache: Cache, name: str) -> list[str]:
    selection = read_selection(cache, name)
    return [key.removesuffix(".jpg") for key in cache.keys(selection.modality, selection.rows)]


def test_equal_bytes_are_duplicates_and_the_first_in_plan_order_is_kept(cache: Cache) -> None:
    before = content(cache)
    report = dedup(cache, modality="image", name="unique").report
    assert kept_keys(cache, "unique") == [f"{n:02d}" for n in [*range(1, 18), 21, 22]]
    assert {key: report[key] for key in ("rows", "kept", "dropped", "groups")} == {
        "rows": 22,
        "kept": 19,
        "dropped": 3,
        "groups": 2,
    }
    assert [(group["key"][:2], group["rows"]) for group in report["largest_groups"]] == [("02", 3), ("17", 2)]
    pairs = {(pair["kept"][:2], pair["dropped"][:2]): pair["cosine"] for pair in report["examples"]}
    assert pairs == {("02", "18"): 1.0, ("17", "20"): 1.0}
    assert content(cache) == before and verify_cache(cache.path) == []


def test_a_picture_saved_again_with_another_quality_is_a_near_duplicate(cache: Cache) -> None:
    report = dedup(cache, modality="image", name="distinct", threshold=0.99).report
    assert kept_keys(cache, "distinct") == [f"{n:02d}" for n in range(1, 18)]
    pairs = {(pair["kept"][:2], pair["dropped"][:2]): pair["cosine"] for pair in report["examples"]}
    assert pairs.keys() == {("02", "18"), ("05", "21"), ("06", "22"), ("17", "20")}
    assert 0.99 <= pairs["05", "21"] < 1


def test_sentences_are_duplicates_when_they_are_equal_after_cleaning(cache: Cache) -> None:
    report = dedup(cache, modality="text", name="sentences").report
    rows = read_selection(cache, "sentences").rows
    assert cache.texts(rows) == ["a red disc", "a blue disc", "a green square", "A red disc"]
    assert (report["rows"], report["dropped"], report["groups"]) == (7, 3, 2)


def test_doing_it_again_returns_what_is_there_and_another_way_needs_another_name(cache: Cache) -> None:
    first = dedup(cache, modality="image", name="once")
    stamp = cache.layout.selection("once").stat().st_mtime_ns
    assert dedup(cache, modality="image", name="once").digest == first.digest
    assert cache.layout.selection("once").stat().st_mtime_ns == stamp
    with pytest.raises(MismatchError, match=r"made otherwise .* use another name"):
        dedup(cache, modality="image", name="once", threshold=0.9)


def test_nothing_is_a_duplicate_or_everything_is(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    add_array(cache, "image", unit_features(40, 64), bad=(0, 7))
    add_array(cache, "text", np.repeat(unit_features(1, 8), 40, axis=0), not_finite=(0,))
    none = dedup(cache, modality="image", name="none", threshold=0.95)
    assert none.rows.tolist() == [row for row in range(40) if row not in (0, 7)]
    assert (none.report["groups"], none.report["examples"], none.report["largest_groups"]) == (0, [], [])
    every = dedup(cache, modality="text", name="every", threshold=1.0)
    assert every.rows.tolist() == [1]
    assert every.report["largest_groups"] == [{"row": 1, "key": "1", "rows": 39}]
    assert len(every.report["examples"]) == 1
    assert verify_cache(cache.path) == []


def test_a_modality_without_ok_rows_gives_an_empty_selection(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    add_array(cache, "image", unit_features(3, 8), bad=(0, 1, 2))
    assert len(dedup(cache, modality="image", name="a").rows) == 0
    assert len(dedup(cache, modality="image", name="b", threshold=0.5).rows) == 0


def test_an_unfinished_array_is_refused(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 16)
    add_array(cache, "image", unit_features(40, 8), parts=(0, 2))
    with pytest.raises(UnfinishedError, match="2 of 3 parts are committed"):
        dedup(cache, modality="image", name="some")


def test_a_cache_that_is_being_written_is_read_and_gets_no_selection(cache: Cache) -> None:
    with cache.lock(), pytest.raises(LockedError):
        dedup(cache, modality="image", name="locked")
    assert "locked" not in selection_names(cache.layout)


@pytest.fixture
def invoke(cache: Cache) -> Callable[..., Result]:
    return lambda *args: CliRunner().invoke(cli, ["dedup", "--cache", str(cache.path), *args])


def test_the_command_prints_counts_pairs_and_what_to_do_next(invoke: Callable[..., Result], cache: Cache) -> None:
    result = invoke("--modality", "image", "--exact", "--name", "shown")
    assert result.exit_code == 0, result.stderr
    assert "selection shown: 19 of 22 images kept, 3 dropped in 2 groups" in result.stdout
    assert result.stdout.splitlines()[-1] == f"next: pipeline distill --cache {cache.path} --images shown --out RUN"
    as_json = json.loads(invoke("--modality", "text", "--threshold", "1", "--name", "texts", "--json").stdout)
    assert (as_json["kept"], as_json["method"]["threshold"], as_json["search"]) == (4, 1.0, {"kind": "exact"})
    shown = CliRunner().invoke(cli, ["inspect", str(cache.path), "--json"])
    listed = {selection["name"]: selection for selection in json.loads(shown.stdout)["selections"]}
    assert listed["shown"]["rows"] == 19 and listed["shown"]["state"] == "current"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--modality", "image", "--name", "n"], ["neither --exact nor --threshold"]),
        (["--modality", "image", "--name", "n", "--exact", "--threshold", "0.9"], ["--exact and --threshold 0.9"]),
        (["--modality", "image", "--name", "n", "--threshold", "0"], ["--threshold", "above 0"]),
        (["--modality", "image", "--name", "n", "--threshold", "1.1"], ["--threshold", "up to 1"]),
        (["--modality", "image", "--name", "n", "--threshold", "nan"], ["--threshold"]),
        (["--modality", "imag", "--name", "n", "--exact"], ["did you mean 'image'"]),
        (["--name", "n", "--exact"], ["--modality"]),
        (["--modality", "image", "--exact"], ["--name NAME is missing"]),
        (["--modality", "image", "--exact", "--name", "../up"], ["cannot name a selection"]),
        (["--modality", "image", "--exact", "--name", "n", "--array", "stub"], ["unknown image array", "known"]),
    ],
)
def test_wrong_arguments_are_one_line_that_helps_and_exit_code_2(
    invoke: Callable[..., Result], args: list[str], words: list[str]
) -> None:
    result = invoke(*args)
    assert result.exit_code == 2, result.stderr
    (error,) = result.stderr.splitlines()
    assert all(word in error for word in words), error


def test_an_interrupted_dedup_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 1024)
    add_array(cache, "image", unit_features(8_192, 256))
    before = content(cache)
    command = ["dedup", "--cache", str(cache.path), "--modality", "image", "--threshold", "0.9", "--name", "n"]
    program = (
        "import sys, time; from stages.search import near_duplicates; from pipeline.cli import main\n"
        "compare = near_duplicates._drop_within_block\n"
        "def slow(*args): print('comparing', file=sys.stderr, flush=True); time.sleep(30); compare(*args)\n"
        "near_duplicates._drop_within_block = slow\n"
        f"sys.argv = ['pipeline', *{command!r}]; main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None and "comparing" in process.stderr.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert "nothing was changed" in process.stderr.read()
    process.stderr.close()
    assert content(cache) == before and not cache.layout.all_selections.exists()
