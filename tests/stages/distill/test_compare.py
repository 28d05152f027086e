"""Runs are found wherever they lie, told as their files tell them, and one that cannot be read says why."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cache_schema.errors import DamagedError, UsageError
from cache_schema.json_file import read_sealed
from stages.distill.compare import ComparedRun, compare_runs, differences_of, find_runs, read_curves
from stages.runs.folder import RunFolder
from tests.corpora.golden import RUN as GOLDEN
from tests.corpora.resealed import reseal

NAMES = ("finished", "replayed", "stopped")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with copies of three runs."""
    for name in NAMES:
        shutil.copytree(GOLDEN / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def compared(*places: Path) -> dict[str, ComparedRun]:
    return {run.name: run for run in compare_runs(find_runs(places))}


def last_line(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text().splitlines()[-1])


def write_lines(path: Path, *lines: dict[str, Any], end: str = "\n") -> None:
    path.write_text("\n".join(map(json.dumps, lines)) + end)


def test_a_run_a_folder_of_runs_and_folders_of_such_folders_are_found_each_run_once(runs: Path) -> None:
    shutil.copytree(GOLDEN / "stopped", runs / "sweep" / "small" / "a")
    shutil.copytree(GOLDEN / "stopped", runs / "sweep" / "small" / ".hidden")
    here = [runs / "finished", runs / "replayed", runs / "stopped", runs / "sweep" / "small" / "a"]
    assert find_runs([runs]) == here
    assert find_runs([runs / "stopped", runs, runs / "stopped" / ".."]) == [here[2], here[0], here[1], here[3]]
    assert find_runs([runs / "finished"]) == [runs / "finished"]
    assert list(compared(runs)) == ["finished", "replayed", "stopped", "sweep/small/a"]
    assert list(compared(runs / "sweep")) == ["a"]


def test_what_lies_inside_a_run_is_no_other_run(runs: Path) -> None:
    shutil.copytree(GOLDEN / "stopped", runs / "finished" / "model" / "inner")
    assert [run.name for run in find_runs([runs])] == list(NAMES)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda place: place.mkdir(), "holds no run"),
        (lambda place: place.write_text("x"), "is no folder"),
        (lambda place: None, "does not exist"),
    ],
)
def test_a_place_without_a_run_is_a_usage_error_also_beside_places_with_some(runs: Path, make: Any, words: str) -> None:
    place = runs.parent / "other"
    make(place)
    with pytest.raises(UsageError) as refusal:
        find_runs([runs, place])
    assert str(refusal.value) == (f"{place} {words}: name a run that `pipeline distill` made, or a folder of such runs")


def test_every_number_is_that_of_the_last_lines_of_the_run(runs: Path) -> None:
    found = compared(runs)
    states = {name: (run.state, run.steps_done, run.steps) for name, run in found.items()}
    assert states == {"finished": ("ended", 4, 4), "replayed": ("ended", 2, 2), "stopped": ("stopped", 2, 4)}
    for name, run in found.items():
        line = last_line(runs / name / "metrics.jsonl")
        assert (run.loss, run.cosine, run.problem) == (line["loss"], line["cosine"], None)
        assert run.student == "open_clip:golden-tiny"
        assert (run.held_out_agreement, run.zero_shot_top1, run.amendments) == (None, None, ())


def test_a_step_that_was_left_out_has_no_loss_and_the_one_before_is_told(runs: Path) -> None:
    metrics = runs / "stopped" / "metrics.jsonl"
    before = last_line(metrics)
    metrics.write_text(metrics.read_text() + json.dumps({"step": 3, "learning_rate": 0.1, "skipped": 1.0}) + "\n")
    run = compared(runs)["stopped"]
    assert (run.steps_done, run.loss) == (3, before["loss"])


def test_images_per_second_are_counted_over_the_last_hundred_steps_by_their_time(runs: Path) -> None:
    slow = {"images_per_s": 1.0, "seconds": 1000.0}
    lines = [{"step": 1, **slow}, *({"step": step, "images_per_s": 50.0, "seconds": 2.0} for step in range(2, 101))]
    write_lines(runs / "stopped" / "speed.jsonl", *lines, {"step": 101, "images_per_s": 300.0, "seconds": 1.0})
    # 99 steps of 100 images in 2 seconds, and one of 300 in 1.
    assert compared(runs)["stopped"].images_per_s == pytest.approx((99 * 100 + 300) / (99 * 2 + 1))


def test_what_was_held_out_is_told_as_it_was_measured_last(runs: Path) -> None:
    write_lines(
        runs / "stopped" / "held_out.jsonl",
        {"step": 1, "loss": 3.0, "cosine": 0.1, "agreement": 0.7, "zero_shot_top1": 0.2},
        {"step": 2, "loss": 2.0, "cosine": 0.2, "agreement": 0.6},
    )
    run = compared(runs)["stopped"]
    assert (run.held_out_agreement, run.zero_shot_top1) == (0.6, 0.2)


def test_steps_of_an_amended_run_are_those_of_its_last_amendment(runs: Path) -> None:
    about = read_sealed(runs / "stopped" / "run.json")["about"]
    amendments = [
        {"step": 1, "reason": "longer", "changes": {"steps": 9}},
        {"step": 2, "reason": "slower", "changes": {"learning_rate": 1e-4}},
    ]
    reseal(runs / "stopped" / "run.json", about={**about, "amendments": amendments})
    run = compared(runs)["stopped"]
    assert run.steps == 9 and [each["reason"] for each in run.amendments] == ["longer", "slower"]


def test_a_run_that_this_machine_trains_is_told_from_one_that_was_killed_and_one_that_another_trains(
    runs: Path,
) -> None:
    folder = RunFolder(runs / "stopped")
    with folder.lock() as lock:
        assert compared(runs)["stopped"].state == "trained now"
        holder = json.loads(lock.path.read_text())
    lock.path.write_text(json.dumps({**holder, "started": "1"}))
    assert compared(runs)["stopped"].state == "stopped"
    lock.path.write_text(json.dumps({**holder, "process_space": "elsewhere", "host": "far"}))
    assert compared(runs)["stopped"].state == "locked by far"
    assert os.listdir(runs / "finished") == os.listdir(GOLDEN / "finished"), "nothing is written"


def test_a_line_that_is_under_way_is_not_read_and_a_broken_one_before_it_is_damage(runs: Path) -> None:
    metrics = runs / "stopped" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 3, "lo')
    run = compared(runs)["stopped"]
    assert run.problem is None and run.steps_done == 2
    metrics.write_text(whole + '{"step": 3, "lo\n')
    run = compared(runs)["stopped"]
    assert run.state == "damaged" and run.problem is not None and "metrics.jsonl is damaged" in run.problem


def test_a_long_log_is_read_from_its_end(runs: Path) -> None:
    lines = [{"step": step, "loss": 1 / step, "cosine": 0.5, "more": "x" * 100} for step in range(1, 2001)]
    write_lines(runs / "stopped" / "metrics.jsonl", *lines)
    assert (runs / "stopped" / "metrics.jsonl").stat().st_size > 200_000
    run = compared(runs)["stopped"]
    assert run.problem is None and (run.steps_done, run.loss) == (2000, 1 / 2000)


def test_runs_that_cannot_be_read_say_why_and_the_others_are_told_as_ever(runs: Path) -> None:
    reseal(runs / "replayed" / "run.json", format=99)
    (runs / "stopped" / "run.json").write_text("{}")
    shutil.copytree(GOLDEN / "stopped", runs / "torn")
    (runs / "torn" / "run.json").unlink()
    found = compared(runs)
    assert {name: run.state for name, run in found.items()} == {
        "finished": "ended",
        "replayed": "refused",
        "stopped": "damaged",
        "torn": "damaged",
    }
    problems = [found[name].problem for name in ("replayed", "stopped", "torn")]
    words = ("has run format 99, this version reads", "is not a sealed JSON object", "(no run.json)")
    assert all(word in str(problem) for word, problem in zip(words, problems, strict=True))
    assert found["finished"].loss is not None


def test_differences_are_the_fields_that_are_not_equal_in_all_with_their_values_in_order(runs: Path) -> None:
    asked = read_sealed(runs / "stopped" / "run.json")["asked"]
    other = {**asked, "learning_rate": 0.5, "weights": {**asked["weights"], "vl": 0.1}, "new": True}
    reseal(runs / "stopped" / "run.json", asked=other)
    one, two = compare_runs([runs / "finished", runs / "stopped"])
    assert differences_of([one, two]) == {
        "learning_rate": [0.0008, 0.5],
        "new": [None, True],
        "weights.vl": [0.7, 0.1],
    }
    assert differences_of([one, one]) == {} == differences_of([one])


def test_curves_of_every_step_are_means_of_a_few_and_held_out_ones_are_as_measured_last(runs: Path) -> None:
    lines = [{"step": step, "loss": float(step % 2), "cosine": step / 10, "learning_rate": 0.1} for step in range(1, 9)]
    write_lines(runs / "stopped" / "metrics.jsonl", *lines)
    write_lines(
        runs / "stopped" / "held_out.jsonl",
        {"step": 4, "agreement": 0.1},
        {"step": 8, "agreement": 0.2},
        {"step": 4, "agreement": 0.3},
    )
    curves = read_curves(runs / "stopped", num_points=4)
    assert curves["loss"] == ((2, 0.5), (4, 0.5), (6, 0.5), (8, 0.5))
    assert curves["cosine"] == tuple((step, pytest.approx(step / 10 - 0.05)) for step in (2, 4, 6, 8))
    assert curves["held_out_agreement"] == ((4, 0.3), (8, 0.2))
    assert read_curves(runs / "stopped", num_points=99)["loss"] == tuple((line["step"], line["loss"]) for line in lines)


def test_curves_of_a_broken_log_are_damage(runs: Path) -> None:
    (runs / "stopped" / "metrics.jsonl").write_text('{"step": 1}\n[]\n{"step": 3}\n')
    with pytest.raises(DamagedError, match=r"metrics\.jsonl has the line '\[\]', which names no step"):
        read_curves(runs / "stopped", num_points=9)
