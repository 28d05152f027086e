"""Command lines that run in this process, and the one line in which they say what is wrong."""

import subprocess

from click.testing import CliRunner, Result

from pipeline.cli import cli


def invoke(*args: object) -> Result:
    """Runs `pipeline ARGS` in this process."""
    return CliRunner().invoke(cli, list(map(str, args)))


def only_error(result: "Result | subprocess.CompletedProcess[str]") -> str:
    """Returns the one line on stderr that says what is wrong; stdout must be empty."""
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
