"""The program as its users meet it: exit codes, one-line errors, help, clean stdout."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cli import cli
from pipeline.commands import COMMANDS
from tests.corpora.command_line import only_error
from tests.corpora.processes import ROOT, start
from tests.corpora.stub_teacher import STUB


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["no command given", "extract", "pipeline --help"]),
        (["extrat"], ["unknown command 'extrat'", "did you mean 'extract'"]),
        (["extract", "--teachr", "x"], ["unknown option '--teachr'", "did you mean '--teacher'"]),
        (["--verbos"], ["unknown option '--verbos'"]),
        (["extract", "--images", "x"], ["--cache DIR is missing", "pipeline extract --help"]),
        (["inspect"], ["CACHE is missing"]),
        (["extract", "--cache"], ["--cache"]),
        (["extract", "--cache", "c", "stray"], ["stray"]),
        (["extract", "--cache", "c", "--executor", "rey"], ["--executor", "did you mean 'ray'"]),
        (["extract", "--cache", "c", "--images", ""], ["--images", "names nothing"]),
        (["extract", "--cache", "c", "--teacher", STUB], ["nothing to extract"]),
        (["extract", "--cache", "c", "--images", "none.tar", "--teacher", STUB], ["none.tar"]),
        (["extract", "--cache", "c", "--workers", "2"], ["--executor ray"]),
        (["extract", "--cache", "c", "--executor", "ray", "--device", "cuda:1"], ["use --device cuda"]),
        (["extract", "--cache", "c", "--executor", "ray", "--ray-address", "ray://head"], ["HOST:PORT"]),
        (["extract", "--cache", "c", "--part-rows", "1500"], ["1500", "at most 1,024, or a multiple of 1,024"]),
        (["extract", "--cache", "c", "--max-bad-fraction", "nan"], ["--max-bad-fraction", "nan"]),
        (["distill", "--cache", "c", "--out", "o", "--learning-rate", "0"], ["--learning-rate"]),
        (["distill", "--cache", "c", "--out", "o", "--learning-rate", "1e9"], ["--learning-rate"]),
        (["distill", "--cache", "c", "--out", "o", "--temperature", "vl=0"], ["temperature"]),
        (["distill", "--cache", "c", "--out", "o", "--loss", "vl"], ["--loss", "NAME=X"]),
        (["mine", "--cache", "c", "--name", "../up"], ["cannot name"]),
        (["mine", "--cache", "c", "--name", "n", "--from", "imag"], ["--from", "did you mean 'image'"]),
        (["list", "teacher"], ["did you mean 'teachers'"]),
        (["inspect", "nothing-here"], ["nothing-here"]),
    ],
)
def test_wrong_command_line_is_one_line_that_helps_and_exit_code_2(
    invoke: Callable[..., Result], args: list[str], words: list[str]
) -> None:
    result = invoke(*args)
    assert result.exit_code == 2, result.stderr
    error = only_error(result)
    for word in words:
        assert word in error
    assert os.listdir() == []


@pytest.mark.parametrize(
    "count", ["0", "-1", "1e3", "0x10", "nan", "1_000", "2147483648", "9" * 40, "٣", "64 ", "1.0", ""]
)
@pytest.mark.parametrize("flag", ["--batch-size", "--part-rows"])
def test_count_that_is_none_is_refused_with_the_rule(invoke: Callable[..., Result], flag: str, count: str) -> None:
    result = invoke("extract", "--cache", "c", flag, count)
    assert result.exit_code == 2
    assert f"{flag}: " in only_error(result)
    assert "from 1 to 2147483647" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_one_screen_and_has_an_example(invoke: Callable[..., Result], command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert len(result.stdout.splitlines()) <= 50


def test_help_of_the_program_lists_every_command(invoke: Callable[..., Result]) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout
    assert len(result.stdout.splitlines()) <= 50


def test_terminal_escapes_of_the_user_come_out_as_text(invoke: Callable[..., Result]) -> None:
    result = invoke("extr\x1b[31mact")
    assert "\x1b" not in result.stderr
    assert "\\x1b[31m" in result.stderr


def test_bug_ends_with_1_and_shows_its_traceback_only_when_asked() -> None:
    # Nobody can cause a bug on purpose: one is planted before the program starts.
    planted = "import pipeline.commands.list as it; it.table = None; from pipeline.cli import main; main()"
    args = [sys.executable, "-c", planted, "list", "sources"]
    result = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert only_error(result).endswith("run again with --debug for the traceback")
    with_trace = subprocess.run([*args, "--debug"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert with_trace.returncode == 1
    assert "Traceback" in with_trace.stderr


def test_reader_that_goes_away_is_no_traceback() -> None:
    process = start("list", "sources")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""


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
