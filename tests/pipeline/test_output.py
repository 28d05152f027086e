"""What is printed cannot steer a terminal, and stdout has the result alone."""

import json
import subprocess
import sys

import pytest

from pipeline.output import only_results_on_stdout, print_error, print_result, printable, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("Grüße, 猫 🐈", "Grüße, 猫 🐈"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("two\nlines\tand a tab", "two\\nlines\\tand a tab"),
        ("file\u202egnp.exe", "file\\u202egnp.exe"),
        ("lone \udcff", "lone \\udcff"),
        ("\x9b31m", "\\x9b31m"),
        ("", ""),
    ],
)
def test_nothing_that_steers_a_terminal_is_printed_raw(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("first\nsecond \x1b[0m")
    assert capsys.readouterr().err == "error: first second \\x1b[0m\n"


def test_json_result_is_one_object_on_one_line_whatever_else_prints(capsys: pytest.CaptureFixture[str]) -> None:
    with only_results_on_stdout():
        print("a library says hello")
        print_result({"é\n": "\x1b"}, as_json=True, lines=["not shown"], next_step="do this")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"é\n": "\x1b", "next": "do this"}
    assert captured.out.count("\n") == 1 and captured.out.isascii()
    assert captured.err == "a library says hello\n"


def test_last_line_for_people_says_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    print_result({}, as_json=False, lines=["one", "two"], next_step="pipeline verify cache")
    assert capsys.readouterr().out == "one\ntwo\nnext: pipeline verify cache\n"


def test_table_puts_numbers_to_the_right() -> None:
    rows = [{"name": "a", "rows": 1234, "share": 0.5}, {"name": "long name", "rows": 7, "share": None}]
    assert table(rows, ("name", "rows", "share")) == [
        "name        rows  share",
        "a          1,234  0.5",
        "long name      7  -",
    ]


def test_file_name_that_the_locale_cannot_write_is_no_reason_to_fail() -> None:
    script = "from pipeline.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", script, "inspect", "gr\u00fc\u00dfe-\u732b"],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert "\\u732b" in result.stderr and "Traceback" not in result.stderr
