"""The whole demo on a few pictures, in processes of its own: cut short, resumed, and run again."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.corpora.processes import environment, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL_DEMO = """
import sys
from pathlib import Path

from pipeline import signals
from pipeline.demo.data import DataConfig
from pipeline.demo.run import run_demo
from pipeline.demo.steps import DemoConfig, StudentPlan

options = ("--batch-size", "16", "--text-batch-size", "32", "--steps", "3")
small, pretrained = "timm:mobilenetv3_small_050?image_size=32", "tf_efficientnet_lite0"
students = (
    StudentPlan("tiny", student=f"timm:{pretrained}?image_size=64", weights=pretrained, options=options),
    StudentPlan("beside", student=small, options=(*options, "--seed", "1"), beside_previous=True),
)
data = DataConfig(num_pictures=60, num_sentences=80, pictures_per_tar=30)
signals.install()
try:
    run_demo(Path(sys.argv[1]), config=DemoConfig(data=data, students=students, num_neighbours=4))
except KeyboardInterrupt:
    sys.exit(signals.exit_code())
"""


def start(out: Path) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-c", SMALL_DEMO, str(out)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(argv, env=environment(), start_new_session=True, **pipes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that got Ctrl-C while it mined or trained, and was run again."""
    out = tmp_path_factory.mktemp("demo") / "out"
    interrupted = start(out)
    wait_for(lambda: (out / "steps" / "extract.json").exists(), interrupted, seconds=300)
    extracted = (out / "steps" / "extract.json").stat().st_mtime_ns
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130, said
    assert not (out / "report.json").exists()

    resumed = start(out)
    _, said = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, said
    assert (out / "steps" / "extract.json").stat().st_mtime_ns == extracted
    return out


def test_an_interrupted_demo_run_again_ends_with_a_whole_report(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())

    assert report["images"] + report["held_out"] == 60
    assert report["sentences"] == 80
    assert report["chance"] == pytest.approx(1 / 9)
    assert report["teacher"]["fitted_on"] == 60
    assert 0 <= report["teacher"]["cross_fitted_top1"] <= report["teacher"]["zero_shot_top1"] <= 1
    assert [student["name"] for student in report["students"]] == ["tiny", "beside"]
    for student in report["students"]:
        assert student["steps"] == 3
        for key in ("zero_shot_top1", "agreement_top1", "mean_cosine"):
            assert -1 <= student[key] <= 1
    steps = ("data", "extract", "mine", "distill tiny", "distill beside", "evaluate")
    assert report["seconds"].keys() == {*steps, "total"}
    assert all(seconds > 0 for seconds in report["seconds"].values())


def test_the_page_shows_held_out_pictures_with_sentences_of_the_demo(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    sentences = (finished / "data" / "sentences.txt").read_text().splitlines()

    assert page.count("data:image/jpeg;base64,") >= 9
    assert sum(sentence in page for sentence in sentences) >= 5


def test_a_finished_demo_run_again_does_nothing_again(finished: Path) -> None:
    kept = [file for file in finished.rglob("*") if file.is_file() and not file.name.startswith("report.")]
    before = {file: file.stat().st_mtime_ns for file in kept}

    again = start(finished)
    _, said = again.communicate(timeout=300)

    assert again.returncode == 0, said
    assert said.count("done before") == 5
    assert {file: file.stat().st_mtime_ns for file in kept} == before
