"""`pipeline dedup` as its users meet it: counts, pairs, one-line errors, and nothing left behind by Ctrl-C."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cache_schema.cache import Cache, create_cache
from tests.corpora.command_line import only_error
from tests.corpora.folders import contents_of
from tests.corpora.processes import environment
from tests.corpora.repeated_corpus import repeated_cache
from tests.corpora.tiny_cache import add_array, unit_features


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return repeated_cache(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def dedup(cache: Cache, invoke: Callable[..., Result]) -> Callable[..., Result]:
    return lambda *args: invoke("dedup", "--cache", cache.path, *args)


def test_the_command_prints_counts_pairs_and_what_to_do_next(
    dedup: Callable[..., Result], invoke: Callable[..., Result], cache: Cache
) -> None:
    result = dedup("--modality", "image", "--exact", "--name", "shown")
    assert result.exit_code == 0, result.stderr
    assert "selection shown: 19 of 22 images kept, 3 dropped in 2 groups" in result.stdout
    assert result.stdout.splitlines()[-1] == f"next: pipeline distill --cache {cache.path} --images shown --out RUN"
    as_json = json.loads(dedup("--modality", "text", "--threshold", "1", "--name", "texts", "--json").stdout)
    assert (as_json["kept"], as_json["method"]["threshold"], as_json["search"]) == (4, 1.0, {"kind": "exact"})
    shown = invoke("inspect", cache.path, "--json")
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
    dedup: Callable[..., Result], args: list[str], words: list[str]
) -> None:
    result = dedup(*args)
    assert result.exit_code == 2, result.stderr
    error = only_error(result)
    assert all(word in error for word in words), error


def test_an_interrupted_dedup_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = create_cache(tmp_path / "cache", 1024)
    add_array(cache, "image", unit_features(8_192, 256))
    before = contents_of(cache.path)
    command = ["dedup", "--cache", str(cache.path), "--modality", "image", "--threshold", "0.9", "--name", "n"]
    program = (
        "import sys, time; from stages.search import near_duplicates; from pipeline.cli import main\n"
        "compare = near_duplicates._drop_within_block\n"
        "def slow(*args): print('comparing', file=sys.stderr, flush=True); time.sleep(30); compare(*args)\n"
        "near_duplicates._drop_within_block = slow\n"
        f"sys.argv = ['pipeline', *{command!r}]; main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None and "comparing" in process.stderr.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert "nothing was changed" in process.stderr.read()
    process.stderr.close()
    assert contents_of(cache.path) == before and not cache.layout.all_selections.exists()
