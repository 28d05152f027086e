"""The demo's report is made of the notes of its steps: measures as they were printed, seconds as they passed."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo.report import _curve, summary_of
from pipeline.demo.steps import DemoConfig, DemoFolder, StudentPlan
from stages.runs.folder import RunFolder

STUDENTS = (
    StudentPlan("first", student="timm:a"),
    StudentPlan("beside", student="timm:b", weights="b", beside_previous=True),
    StudentPlan("again", start="first"),
)
CONFIG = DemoConfig(students=STUDENTS)


def note(seconds: float, **result: Any) -> dict[str, Any]:
    return {"asked": [], "seconds": seconds, "result": result}


def measured(top1: float, **more: float) -> dict[str, float]:
    return {"zero_shot_top1": top1, "mean_per_class_recall": top1 / 2, **more}


def notes(seconds: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Returns the notes of a demo whose steps took so long, in that order."""
    of_teacher = measured(0.8, chance=1 / 9, largest_class=0.3)
    of_students = [measured(top1, agreement_top1=0.5, mean_cosine=0.6, teacher_top1=0.8) for top1 in (0.2, 0.4, 0.6)]
    results: dict[str, dict[str, Any]] = {
        "data": {"images": 80, "sentences": 90, "held_out": 20, "fitted_on": 1234, "cross_fitted_top1": 0.7},
        "evaluate": {"models": [of_teacher, *of_students]},
    }
    trained = {"student": "timm:x", "num_parameters": 5, "steps": 6}
    return {name: note(spent, **results.get(name, trained)) for name, spent in seconds.items()}


SECONDS = {
    "data": 1.0,
    "extract": 2.5,
    "distill first": 10.0,
    "distill beside": 14.0,
    "distill again": 3.0,
    "evaluate": 1.5,
}


def test_the_total_counts_of_students_trained_side_by_side_only_the_longest() -> None:
    found = summary_of(CONFIG, notes(SECONDS))["seconds"]
    assert found == {**SECONDS, "total": 22.0}
    quick = {**SECONDS, "distill beside": 4.0}
    assert summary_of(CONFIG, notes(quick))["seconds"]["total"] == 18.0


def test_every_student_stands_in_the_order_of_its_training_with_its_own_measures() -> None:
    students = summary_of(CONFIG, notes(SECONDS))["students"]
    assert [(s["name"], s["zero_shot_top1"], s["started_from"]) for s in students] == [
        ("first", 0.2, None),
        ("beside", 0.4, "ImageNet weights"),
        ("again", 0.6, "first"),
    ]
    assert [s["share_of_teacher"] for s in students] == pytest.approx([0.25, 0.5, 0.75])
    assert students[0]["agreement_top1"] == 0.5 and students[0]["mean_cosine"] == 0.6
    assert students[0]["mean_per_class_recall"] == 0.1


def test_the_report_says_on_what_the_teacher_was_fitted_and_is_plain_json() -> None:
    report = summary_of(CONFIG, notes(SECONDS))
    assert (report["images"], report["sentences"], report["held_out"]) == (80, 90, 20)
    assert (report["chance"], report["largest_class"]) == (1 / 9, 0.3)
    teacher = report["teacher"]
    assert (teacher["zero_shot_top1"], teacher["cross_fitted_top1"], teacher["fitted_on"]) == (0.8, 0.7, 1234)
    assert "fitted on all 1,234 pictures" in teacher["note"] and "the held-out ones included" in teacher["note"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_measure_too_few_is_our_own_mistake() -> None:
    done = notes(SECONDS)
    done["evaluate"]["result"]["models"].pop()
    with pytest.raises(ValueError, match="zip"):
        summary_of(CONFIG, done)


@pytest.mark.parametrize(("num_steps", "num_points", "of_first"), [(1, 1, 1), (7, 7, 1), (239, 239, 1), (241, 121, 2)])
def test_a_point_of_a_curve_is_the_mean_of_a_few_steps_at_the_last_of_them(
    tmp_path: Path, num_steps: int, num_points: int, of_first: int
) -> None:
    folder = DemoFolder(tmp_path)
    path = RunFolder(folder.run("first")).metrics
    path.parent.mkdir(parents=True)
    lines = [{"step": step, "loss": 2.0 * step, "cosine": -step} for step in range(1, num_steps + 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = _curve(folder, STUDENTS[0])
    assert curve.name == "first" and len(curve.loss) == len(curve.cosine) == num_points
    mean = sum(range(1, of_first + 1)) / of_first
    assert curve.loss[0] == (of_first, 2 * mean) and curve.cosine[0] == (of_first, -mean)
    assert curve.loss[-1][0] == num_steps
