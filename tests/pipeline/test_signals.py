"""A signal ends the program politely: it says so, keeps what is done, and goes on when it is run again."""

import json
import signal
from pathlib import Path

import pytest

from tests.corpora.command_line import extract_of
from tests.corpora.extracts import digests
from tests.corpora.processes import records_of, result_of, run, start, wait_for
from tests.corpora.stub_teacher import stub


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
