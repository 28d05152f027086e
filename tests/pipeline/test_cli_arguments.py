"""Whatever is typed, a wrong command line ends with 2 and one line, before anything is written."""

import os
import tempfile

from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cli import cli
from pipeline.commands import COMMANDS

FLAGS = [
    *("--images", "--texts", "--teacher", "--cache", "--batch-size", "--part-rows", "--executor", "--workers"),
    *("--index", "--no-index", "--index-device", "--json", "--config", "--from", "--to", "--k", "--name", "--student"),
    *("--out", "--negatives", "--steps", "--seed", "--fresh", "--data", "--bad", "--quiet", "--loss", "--logit-scale"),
]
VALUES = [
    *("", "0", "-1", "1e3", "0x10", "nan", "inf", "9" * 30, "64", "serial", "ray", "cpu", "image", "text", "vl=1"),
    *("none.tar", "python:none:make", "open_clip:", "mined:", "{000..", "a\x1b[2Jb", "--", "-", "é", "\udcff", "a\nb"),
]

word = st.one_of(st.sampled_from(FLAGS), st.sampled_from(VALUES), st.text(max_size=8))
# Either the command or an option is wrong on purpose, so that none of these lines is one that may run.
wrong = st.one_of(
    st.just(["--no-such-option"]),
    st.just(["--batch-size", "0"]),
    st.just(["--part-rows", "1e3"]),
    st.just(["--k", "-1"]),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    command=st.sampled_from(list(COMMANDS)),
    before=st.lists(word, max_size=6),
    fault=wrong,
    after=st.lists(word, max_size=3),
)
def test_generated_wrong_command_lines_end_with_2_in_one_line_and_create_nothing(
    command: str, before: list[str], fault: list[str], after: list[str]
) -> None:
    args = [command, *(arg for arg in [*before, *fault, *after] if arg not in ("--help", "-h", "--help-all"))]
    # Behind an option that wants a value the fault is that value: still no command that may run.
    ran_in = os.getcwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        try:
            result = CliRunner().invoke(cli, args)
            created = os.listdir()
        finally:
            os.chdir(ran_in)
    assert result.exit_code == 2, (args, result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "\x1b" not in lines[0], (args, lines)
    assert created == []
