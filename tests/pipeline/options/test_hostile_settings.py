"""Configuration files and paths that nobody means: one line and exit code 2, at once, and nothing written."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.options.types import MOST_NAME_BYTES, MOST_PATH_BYTES
from tests.corpora.command_line import only_error

DEEP = 50_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (".".join(["a"] * DEEP) + " = 1", "nests tables too deep"),
        ("extract." + " . ".join(["'a b'"] * DEEP) + " = 1", "nests tables too deep"),
        ("[extract." + ".".join(["a"] * DEEP) + "]", "nests tables too deep"),
        ("[extract]\nbatch_size = {" + ".".join(["a"] * DEEP) + " = 1}", "nests tables too deep"),
        ("[extract]\nbatch_size = " + "[" * DEEP + "]" * DEEP, "nests tables too deep"),
        ("[extract]\nbatch_size = " + "{a = " * DEEP + "1" + "}" * DEEP, "nests tables too deep"),
        ("".join(f"extract.a{number}.b.c = 1\n" for number in range(5000)), "unknown setting 'a0'"),
        ("extract.batch_size.a.b = 1", "is not a whole number"),
        ("[extract]\nbatch_size = 4\0", "is not TOML"),
        ("[extract]\nbatch_size = " + "9" * 5000, "is not TOML"),
        ("[extract]\nbatch_size = 0x" + "f" * 5000, "a number of hundreds of digits is out of range"),
        ("[extract]\nmax_bad_fraction = 1e999", "is out of range"),
        ("[extract]\nbatch_size = 4\nbatch_size = 4", "Cannot overwrite a value"),
        ("[extract]\nbatch_size = 4\n[extract]\nindex = true", "twice"),
        ("[[extract]]\nbatch_size = 4", "extract must be a table"),
        ('[extract]\nteacher = "a\\u0000b"', "names nothing"),
        ("[extract]\nindex = 3", "index is neither true nor false"),
        ("[extract]\njson = {a = 1}", "json is neither true nor false"),
        ("[extract]\nimages = [[1], [2]]", "is not text"),
        ("[extract]\nteacher = '" + "x" * (1 << 20) + "'", "bytes, more than"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_settings_that_nobody_means_are_refused_at_once(
    invoke: Callable[..., Result], tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(content)
    begun = time.monotonic()
    result = invoke("extract", "--config", str(path), "--cache", "c", "--texts", "none.txt")
    assert result.exit_code == 2 and words in only_error(result)
    assert time.monotonic() - begun < 10 and len(only_error(result)) < 2000
    assert os.listdir() == []


@pytest.mark.parametrize("content", [b"[extract]\nteacher = '\xff'", "[extract]\n".encode("utf-16")])
def test_another_encoding_is_refused(invoke: Callable[..., Result], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "settings.toml").write_bytes(content)
    result = invoke("extract", "--config", str(tmp_path / "settings.toml"), "--cache", "c")
    assert result.exit_code == 2 and "is not TOML: 'utf-8' codec" in only_error(result)


def test_a_byte_order_mark_and_many_words_between_dots_are_no_offence(
    invoke: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        "[extract]\nbatch_size = 0\n# " + "word. " * 900 + "\nteacher = '" + "a.b/" * 500 + "'", "utf-8-sig"
    )
    result = invoke("extract", "--config", str(path), "--cache", "c")
    assert "setting batch_size in the --config file: 0 is out of range" in only_error(result)


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "device", "below a file"])
@pytest.mark.parametrize("by_variable", [False, True])
def test_what_is_no_regular_file_is_refused_and_not_opened(
    invoke: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, by_variable: bool
) -> None:
    path = tmp_path / "settings"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)
        socket.socket(socket.AF_UNIX).bind("settings")
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.touch()
        path = path / "more"
    given = [] if by_variable else ["--config", str(path)]
    if by_variable:
        monkeypatch.setenv("PIPELINE_EXTRACT_CONFIG", str(path))
    result = invoke("extract", *given, "--cache", "c", "--texts", "none.txt")
    assert result.exit_code == 2
    assert ("does not exist" if kind == "below a file" else "is no regular file") in only_error(result)
    assert os.listdir() == []


LONG = [
    "/" + "a" * (MOST_NAME_BYTES + 1),
    "a" * 4096,
    "/" + "a/" * (MOST_PATH_BYTES // 2 + 1),
    "/" + "é" * 128,
    "a/" * 2047 + "bc",
]


@pytest.mark.parametrize("path", LONG, ids=len)
@pytest.mark.parametrize(
    "args",
    [
        ["verify", "PATH"],
        ["inspect", "PATH"],
        ["gc", "PATH"],
        ["repair", "PATH"],
        ["list", "sources", "--config", "PATH"],
        ["extract", "--texts", "none.txt", "--cache", "PATH"],
        ["plan", "--texts", "none.txt", "--cache", "PATH"],
        ["import", "--text-features", "none.npy", "--cache", "PATH"],
        ["mine", "--cache", "PATH", "--name", "x"],
        ["dedup", "--modality", "image", "--name", "x", "--cache", "PATH"],
        ["distill", "--cache", "PATH", "--out", "o"],
        ["distill", "--cache", "c", "--out", "PATH"],
        ["evaluate", "PATH", "--data", "d"],
        ["evaluate", "m", "--data", "PATH"],
        ["demo", "--out", "PATH"],
        ["extract", "--cache", "c", "--teacher", "open_clip:ViT-B-32@PATH", "--texts", "none.txt"],
        ["extract", "--cache", "c", "--teacher", "open_clip:local-dir:PATH", "--texts", "none.txt"],
        ["extract", "--cache", "c", "--teacher", "hf:PATH", "--texts", "none.txt"],
        ["extract", "--cache", "c", "--teacher", "python:PATH:make", "--texts", "none.txt"],
        ["extract", "--cache", "c", "--teacher", "python:tests.corpora.stub_teacher:make", "--texts", "PATH"],
        ["extract", "--cache", "c", "--teacher", "python:tests.corpora.stub_teacher:make", "--images", "PATH"],
        ["extract", "--cache", "c", "--teacher", "python:tests.corpora.stub_teacher:make", "--images", "PATH/*.jpg"],
        ["import", "--cache", "c", "--teacher-name", "t", "--text-features", "npy:PATH"],
    ],
    ids=lambda args: " ".join(args)[:60],
)
def test_a_path_that_no_file_system_takes_is_refused_wherever_it_stands(
    invoke: Callable[..., Result], args: list[str], path: str
) -> None:
    result = invoke(*[arg.replace("PATH", path) for arg in args])
    assert result.exit_code == 2, result.output
    only_error(result)
    assert os.listdir() == []


def test_the_longest_path_that_is_taken_holds_a_cache(invoke: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("one\ntwo\n")
    deep = str(tmp_path)
    while len(deep) < MOST_PATH_BYTES:
        deep += "/" + "d" * min(MOST_NAME_BYTES, MOST_PATH_BYTES - len(deep) - 1 or 1)
    deep = deep[:MOST_PATH_BYTES].rstrip("/")
    args = ["--texts", str(tmp_path / "sentences.txt"), "--teacher", "python:tests.corpora.stub_teacher:make"]
    result = invoke("extract", *args, "--cache", deep)
    assert result.exit_code == 0, result.output
    assert invoke("verify", deep).exit_code == 0
