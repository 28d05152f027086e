"""Every benchmark runs at its smallest size and prints what docs/performance.md names. No time is judged."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.commands import ROOT
from benchmarks.teacher_on_gpu import stored_per_s
from benchmarks.teachers import STUB
from tests.corpora.pictures import write_pictures

DOCUMENT = (ROOT / "docs" / "performance.md").read_text()

SMALLEST = {
    "extract_overhead": ("--teachers", "stub", "--rows", "8", "--batch-size", "4", "--rounds", "1"),
    "distill_speed": ("--rows", "8", "--batch-size", "4", "--rounds", "1", "--pairs", "2"),
    "memory": ("--factor", "2", "--image-part-rows", "4", "--text-part-rows", "64"),
    "rerun": ("--parts", "3", "--rounds", "1"),
    "million_texts": ("--rows", "512", "--part-rows", "128", "--batch-size", "64"),
}


def run(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)


def keys_of(value: object) -> set[str]:
    if not isinstance(value, dict):
        return set()
    return set(value).union(*map(keys_of, value.values()))


def keys_in_the_document(name: str) -> set[str]:
    """Returns what the document's lines about a benchmark say in `code` spans of the form `name: key`."""
    return set(re.findall(rf"`{name}: (\w+)`", DOCUMENT))


@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_prints_the_figures_that_the_document_names(name: str, pictures: Path) -> None:
    given = ("--pictures", str(pictures)) if name in ("distill_speed", "extract_overhead", "memory") else ()
    done = run(name, *SMALLEST[name], *given)
    assert done.returncode == 0, done.stderr
    named = keys_in_the_document(name)
    assert named and named <= keys_of(json.loads(done.stdout))
    assert f"python -m benchmarks.{name}" in DOCUMENT


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "given", 3, sizes=[(48, 40)], format_name="JPEG")


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or __import__("torch").cuda.is_available(), reason="there is a GPU"
)
def test_the_benchmark_of_the_gpu_says_that_there_is_none() -> None:
    done = run("teacher_on_gpu")
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr
    assert done.stdout == ""


def test_the_way_from_stored_pictures_through_the_teacher_runs_on_any_device() -> None:
    assert stored_per_s(STUB, 4, 1, 0.1, device="cpu", precision="float32") > 0
