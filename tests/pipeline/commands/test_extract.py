"""`pipeline extract` as its users meet it: one JSON object, the same on Ray, parts that fail, teachers that chat."""

import json
import socket
from pathlib import Path

from tests.corpora.command_line import extract_of, only_error
from tests.corpora.processes import result_of, run
from tests.corpora.stub_teacher import stub


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
