"""The program as its users meet it: exit codes, one-line errors, clean stdout, signals."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.commands import COMMANDS
from tests.corpora.command_line import only_error
from tests.corpora.damaged_files import flip_bit
from tests.corpora.extracts import digests
from tests.corpora.processes import ROOT, records_of, result_of, run, start, wait_for
from tests.corpora.small_corpus import write_sources
from tests.corpora.stub_teacher import STUB, stub


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 pictures, one of them empty, and 40 sentences, one of them empty."""
    folder = tmp_path_factory.mktemp("data")
    write_sources(folder, num_images=12, num_texts=40, empty_images=[3], empty_texts=[7])
    return folder


def extract_of(data: Path, cache: Path, *more: str, teacher: str = STUB) -> list[str]:
    images, texts = ["--images", str(data / "pictures")], ["--texts", str(data / "sentences.txt")]
    return ["extract", *images, *texts, "--teacher", teacher, "--cache", str(cache), "--part-rows", "8", *more]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A cache that `extract` has finished, not to be changed, and what it printed."""
    cache = tmp_path_factory.mktemp("finished") / "cache"
    return cache, result_of(*extract_of(data, cache, "--no-index"))


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


def test_bad_value_in_the_environment_names_the_variable(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_EXTRACT_BATCH_SIZE", "many")
    result = invoke("extract", "--cache", "c")
    assert result.exit_code == 2
    assert "environment variable PIPELINE_EXTRACT_BATCH_SIZE: 'many'" in only_error(result)


def test_bad_value_in_the_file_names_the_setting(invoke: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[extract]\nbatch_size = 0\n")
    result = invoke("extract", "--cache", "c", "--config", str(tmp_path / "settings.toml"))
    assert result.exit_code == 2
    assert "setting batch_size in the --config file: 0" in only_error(result)


def test_ray_address_in_the_environment_is_refused_before_anything_is_done(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    result = invoke("extract", "--cache", "c", "--teacher", STUB)
    assert result.exit_code == 2
    assert "RAY_ADDRESS is set (10.0.0.1:6379)" in only_error(result)


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


def test_extract_prints_one_json_object_and_a_rerun_has_nothing_to_do(finished: tuple[Path, dict]) -> None:
    cache, result = finished
    image = next(array for array in result["arrays"].values() if array["modality"] == "image")
    assert (image["rows"], image["ok"], image["bad"], image["pending"], image["dim"]) == (12, 11, 1, 0, 16)
    assert result["extracted_rows"] == 52 and result["num_parts"] == 7
    assert result["next"].startswith("pipeline mine --cache")
    again = result_of("extract", "--cache", cache, "--no-index")
    assert again["num_parts"] == 0
    assert again["arrays"] == result["arrays"]


def test_extract_on_ray_gives_the_same_digests_and_leaves_nothing_behind(
    data: Path, finished: tuple[Path, dict], tmp_path: Path
) -> None:
    for folder in ("home", "temp"):
        (tmp_path / folder).mkdir()
    result = run(
        *extract_of(data, tmp_path / "cache", "--no-index", "--json", "--executor", "ray", "--workers", "2"),
        HOME=str(tmp_path / "home"),
        TMPDIR=str(tmp_path / "temp"),
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["arrays"] == finished[1]["arrays"]
    assert list((tmp_path / "home").iterdir()) == []
    assert list((tmp_path / "temp").iterdir()) == []


def test_cluster_that_does_not_answer_is_an_environment_problem_and_said_soon(data: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run(*extract_of(data, tmp_path / "cache", "--executor", "ray", "--ray-address", address))
    assert result.returncode == 1
    assert f"no Ray cluster answers at {address}" in only_error(result)


def test_failed_part_ends_with_3_and_is_named_and_the_others_are_committed(data: Path, tmp_path: Path) -> None:
    teacher = stub(raise_text="number 20")
    result = run(*extract_of(data, tmp_path / "cache", "--no-index", "--json", teacher=teacher))
    assert result.returncode == 3, result.stderr
    assert "1 of 7 parts failed (text part 2: RuntimeError: the stub teacher was asked to fail)" in result.stderr
    assert result.stderr.strip().endswith("run again to resume")
    text = next(array for array in json.loads(result.stdout)["arrays"].values() if array["modality"] == "text")
    assert (text["rows"], text["pending"]) == (32, 8)


def test_inspect_lists_bad_rows_with_source_key_and_reason(data: Path, finished: tuple[Path, dict]) -> None:
    result = run("inspect", str(finished[0]), "--bad", "--json")
    bad = {(row["modality"], row["key"]): row for row in json.loads(result.stdout)["bad_rows"]}
    assert bad["image", "0003.png"]["status"] == "img-empty"
    assert bad["text", "8"]["status"] == "text-empty"
    assert bad["text", "8"]["source"] == str(data / "sentences.txt")
    assert len(bad) == 2
    human = run("inspect", str(finished[0]), "--bad")
    assert "img-empty" in human.stdout and human.stdout.splitlines()[-1].startswith("next: ")


def test_inspect_shows_the_arrays_that_extract_reported(finished: tuple[Path, dict]) -> None:
    arrays = json.loads(run("inspect", str(finished[0]), "--json").stdout)["arrays"]
    for name, array in finished[1]["arrays"].items():
        assert {key: arrays[name][key] for key in array} == array


def test_verify_ends_with_4_when_there_is_a_problem(finished: tuple[Path, dict], tmp_path: Path) -> None:
    clean = run("verify", str(finished[0]), "--json")
    assert (clean.returncode, json.loads(clean.stdout)["problems"]) == (0, [])
    cache = shutil.copytree(finished[0], tmp_path / "cache")
    shard = next((cache / "image").rglob("c/0/0"))
    flip_bit(shard)
    damaged = run("verify", str(cache), "--json")
    assert damaged.returncode == 4
    assert str(shard) in json.loads(damaged.stdout)["problems"][0]["what"]


def test_what_a_teacher_prints_does_not_mix_with_the_result(data: Path, tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text(
        "from tests.corpora.stub_teacher import make as quiet\n"
        "def make(**options):\n"
        "    print('loading weights, please wait')\n"
        "    return quiet(**options)\n"
    )
    args = extract_of(data, tmp_path / "cache", "--no-index", "--json", teacher="python:chatty:make")
    result = run(*args, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["extracted_rows"] == 52
    assert "please wait" in result.stderr


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_extract_says_so_and_goes_on_when_run_again(
    data: Path, finished: tuple[Path, dict], tmp_path: Path, number: int, code: int
) -> None:
    cache, slow = tmp_path / "cache", stub(seconds_per_batch=0.3)
    process = start(*extract_of(data, cache, "--no-index", "--json", teacher=slow))
    wait_for(lambda: records_of(cache), process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert "state saved, run again to resume" in stderr and "Traceback" not in stderr
    assert stdout == ""
    again = result_of(*extract_of(data, cache, "--no-index"))
    assert 0 < again["num_parts"] < 7
    assert digests(again["arrays"]) == digests(finished[1]["arrays"])


@pytest.mark.slow
def test_interrupted_distill_saves_where_it_is_and_ends_with_the_same_weights(
    finished: tuple[Path, dict], tmp_path: Path
) -> None:
    student = ["--student", "timm:resnet10t?image_size=32", "--steps", "40", "--batch-size", "4", "--num-threads", "1"]
    args = ["distill", "--cache", str(finished[0]), *student, "--json", "--out"]
    process = start(*args, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2, process)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 143, stderr
    assert "interrupted: stopped at step" in stderr and "Traceback" not in stderr
    assert stdout == ""
    again = run(*args, str(tmp_path / "run"))
    assert again.returncode == 0 and "resuming" in again.stderr, again.stderr
    whole = json.loads(run(*args, str(tmp_path / "whole")).stdout)
    assert json.loads(again.stdout)["weights_sha256"] == whole["weights_sha256"]


def test_second_signal_ends_at_once(data: Path, tmp_path: Path) -> None:
    # This teacher swallows the first one.
    (tmp_path / "stubborn.py").write_text(
        "import time\n"
        "from tests.corpora.stub_teacher import StubTeacher, make as plain\n"
        "def make(**options):\n"
        "    teacher = plain(**options)\n"
        "    encode = teacher.encode_texts\n"
        "    def slow(texts):\n"
        "        if 'number' in texts[0]:\n"
        "            print('encoding', flush=True)\n"
        "            try:\n"
        "                time.sleep(60)\n"
        "            except KeyboardInterrupt:\n"
        "                print('ignored', flush=True)\n"
        "                time.sleep(60)\n"
        "        return encode(texts)\n"
        "    teacher.encode_texts = slow\n"
        "    return teacher\n"
    )
    args = ["extract", "--texts", str(data / "sentences.txt"), "--teacher", "python:stubborn:make"]
    process = start(*args, "--cache", tmp_path / "cache", cwd=tmp_path)
    assert process.stderr is not None
    for said in process.stderr:
        if "encoding" in said:
            process.send_signal(signal.SIGINT)
        if "ignored" in said:
            process.send_signal(signal.SIGINT)
            break
    assert process.wait(5) == 130
