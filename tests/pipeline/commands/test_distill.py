"""`pipeline distill` with several students: one command, one folder each, and a resume."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.corpora.small_corpus import small_cache

VIT, NORM = "timm:test_vit?image_size=32", "timm:test_efficientnet?image_size=32"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cache(tmp_path_factory.mktemp("corpus")).path


def test_several_students_learn_in_one_command_and_each_is_a_run_of_its_own(
    cache: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    words = ["--cache", str(cache), "--steps", "2", "--batch-size", "8", "--text-batch-size", "12"]
    words += ["--num-threads", "1", "--decode-workers", "1", "--quiet"]
    both = invoke("distill", "--student", VIT, "--student", NORM, "--out", str(tmp_path / "runs"), *words, "--json")
    assert both.exit_code == 0, both.output
    students = json.loads(both.stdout)["students"]
    assert [Path(one["run"]).name for one in students] == ["test_vit", "test_efficientnet"]
    alone = invoke("distill", "--student", NORM, "--out", str(tmp_path / "alone"), *words, "--json")
    assert json.loads(alone.stdout)["weights_sha256"] == students[1]["weights_sha256"]
    again = invoke("distill", "--student", VIT, "--student", NORM, "--out", str(tmp_path / "runs"), *words)
    assert again.exit_code == 0 and "has ended before" in again.output
    assert f"{tmp_path}/runs/test_vit {tmp_path}/runs/test_efficientnet --data DIR" in again.stdout


def test_another_student_joins_those_that_have_ended(
    cache: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    words = ["--cache", str(cache), "--steps", "1", "--batch-size", "8", "--num-threads", "1", "--quiet", "--json"]
    first = invoke("distill", "--student", VIT, "--student", NORM, "--out", str(tmp_path / "runs"), *words)
    more = ["--student", VIT, "--student", NORM, "--student", "timm:resnet10t?image_size=32"]
    three = invoke("distill", *more, "--out", str(tmp_path / "runs"), *words)
    assert three.exit_code == 0, three.output
    assert json.loads(three.stdout)["students"][:2] == json.loads(first.stdout)["students"]
    assert (tmp_path / "runs" / "resnet10t" / "model").is_dir()
