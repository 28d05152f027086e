"""Streams that are closed, full, or whose reader left: the right exit code, and never a traceback."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpora.extracts import extract, extract_config
from tests.corpora.processes import ROOT, environment
from tests.corpora.stub_teacher import STUB

PIPELINE = f"{sys.executable} -m pipeline"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Runs `command` in bash, which can close streams."""
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "sentences.txt").write_text("one\ntwo\n")
    extract(extract_config(tmp_path / "cache", None, tmp_path / "sentences.txt"))
    return tmp_path / "cache"


CLOSED = [" ".join(some) for count in (1, 2, 3) for some in itertools.combinations(("<&-", ">&-", "2>&-"), count)]


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams_change_no_exit_code_and_get_no_bytes_of_a_file(cache: Path, closed: str) -> None:
    new = cache.parent / "new"
    texts = f"--texts {cache.parent}/sentences.txt --teacher '{STUB}'"
    for args, code in (
        (f"extract {texts} --cache {new} --json", 0),
        (f"verify {new}", 0),
        (f"inspect {cache.parent}/none", 2),
        ("extract --batch-size 0", 2),
    ):
        done = shell(f"{PIPELINE} {args} {closed}")
        assert done.returncode == code and "Traceback" not in done.stderr, (args, done.stderr)
    assert shell(f"{PIPELINE} verify {new}").returncode == 0


@pytest.mark.parametrize(
    "args", ["list sources", "--help", "extract --help-all", "inspect CACHE --json", "verify CACHE"]
)
def test_a_reader_that_leaves_is_no_message_and_exit_code_1(cache: Path, args: str) -> None:
    # `true` reads nothing, and is gone before the first line.
    done = shell(f"{PIPELINE} {args.replace('CACHE', str(cache))} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (1, "")


def test_a_failure_keeps_its_exit_code_when_the_reader_left(cache: Path) -> None:
    next((cache / "text").glob("features.zarr/*/c/0/0")).write_bytes(b"")
    done = shell(f"{PIPELINE} verify {cache} | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 4 and "Traceback" not in done.stderr


def test_who_reads_neither_results_nor_remarks_is_left_alone(cache: Path) -> None:
    done = shell(f"{PIPELINE} verify {cache}/none 2>&1 | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_results_that_cannot_be_written_are_one_error_and_remarks_none() -> None:
    done = shell(f"{PIPELINE} list sources > /dev/full")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "No space left" in done.stderr
    assert done.stderr.count("\n") == 1
    assert shell(f"{PIPELINE} nonsense 2> /dev/full").returncode == 2
