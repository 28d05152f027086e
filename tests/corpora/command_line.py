"""Command lines: one that extracts a small corpus, how to run one in this process, and what it says is wrong."""

import subprocess
from pathlib import Path

from click.testing import CliRunner, Result

from pipeline.cli import cli
from tests.corpora.stub_teacher import STUB


def invoke(*args: object) -> Result:
    """Runs `pipeline ARGS` in this process."""
    return CliRunner().invoke(cli, list(map(str, args)))


def extract_of(data: Path, cache: Path, *more: str, teacher: str = STUB) -> list[str]:
    """Returns the arguments that extract `pictures` and `sentences.txt` of `data` in parts of eight rows."""
    sources = ["--images", str(data / "pictures"), "--texts", str(data / "sentences.txt")]
    return ["extract", "--cache", str(cache), *sources, "--teacher", teacher, "--part-rows", "8", *more]


def only_error(result: "Result | subprocess.CompletedProcess[str]") -> str:
    """Returns the one line on stderr that says what is wrong; stdout must be empty."""
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
