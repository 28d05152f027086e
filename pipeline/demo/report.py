"""Writes the outcome of the demo: report.json for programs, report.html for people."""

import json
from typing import Any

from cache_schema import atomic
from pipeline.demo.gallery import make_gallery
from pipeline.demo.page import Curve, page
from pipeline.demo.steps import DemoConfig, DemoFolder, StudentPlan, steps_of
from stages.runs.folder import RunFolder

_PICTURES_PER_CLASS = 3
_POINTS_OF_A_CURVE = 120

Notes = dict[str, dict[str, Any]]
"""Step name -> {"asked", "seconds", "result"}."""


def write_report(folder: DemoFolder, config: DemoConfig, done: Notes) -> dict[str, Any]:
    """Writes report.json and report.html and returns the former.

    Args:
        folder: the folder of the demo.
        config: what was done.
        done: the notes of all steps.

    Returns:
        JSON: `images` (to train on), `sentences`, `held_out` (pictures), `seconds` (per step, and `total`), `chance`,
        `largest_class`, `teacher` with `name`, `zero_shot_top1`, `mean_per_class_recall`, `fitted_on`,
        `cross_fitted_top1` and a `note` about the two, and `students`, each with `name`, `student`, `num_parameters`,
        `steps`, `zero_shot_top1`, `mean_per_class_recall`, `agreement_top1`, `mean_cosine` and `share_of_teacher`.
    """
    report = summary_of(config, done)
    students = report["students"]
    best = max(students, key=lambda student: student["zero_shot_top1"])
    shown = make_gallery(
        [folder.teacher, str(folder.run(best["name"]))],
        folder.data.held_out,
        folder.cache,
        per_class=_PICTURES_PER_CLASS,
        seed=config.data.seed,
    )
    curves = [_curve(folder, plan) for plan in config.students]
    commands = [step.command_line for step in steps_of(folder, config)]
    html = page(report, curves=curves, gallery=shown, best=best["name"], commands=commands)
    atomic.publish_bytes(folder.root / "report.html", html.encode())
    atomic.publish_json(folder.root / "report.json", report)
    return report


def summary_of(config: DemoConfig, done: Notes) -> dict[str, Any]:
    """Returns report.json; see `write_report`."""
    data = done["data"]["result"]
    teacher, *students = done["evaluate"]["result"]["models"]
    seconds = {name: note["seconds"] for name, note in done.items()}
    return {
        "images": data["images"],
        "sentences": data["sentences"],
        "held_out": data["held_out"],
        "seconds": {**seconds, "total": round(_elapsed(config, seconds), 1)},
        "chance": teacher["chance"],
        "largest_class": teacher["largest_class"],
        "teacher": {
            "name": "composed teacher: EfficientNet-Lite2 aligned to MiniLM",
            "zero_shot_top1": teacher["zero_shot_top1"],
            "mean_per_class_recall": teacher["mean_per_class_recall"],
            "fitted_on": data["fitted_on"],
            "cross_fitted_top1": data["cross_fitted_top1"],
            "note": (
                f"the teacher's linear map was fitted on all {data['fitted_on']:,} pictures and their names, the "
                "held-out ones included; cross_fitted_top1 is over all pictures, each through a map fitted without it"
            ),
        },
        "students": [
            _student(plan, done[f"distill {plan.name}"]["result"], measured)
            for plan, measured in zip(config.students, students, strict=True)
        ],
    }


def _elapsed(config: DemoConfig, seconds: dict[str, float]) -> float:
    """Returns the sum of the seconds of all steps; of steps that ran side by side, those of the longest."""
    beside = {f"distill {plan.name}" for plan in config.students if plan.beside_previous}
    groups: list[float] = []
    for name, spent in seconds.items():
        if name in beside:
            groups[-1] = max(groups[-1], spent)
        else:
            groups.append(spent)
    return sum(groups)


def _student(plan: StudentPlan, trained: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": plan.name,
        "student": trained["student"],
        "started_from": plan.start or ("ImageNet weights" if plan.weights else None),
        "num_parameters": trained["num_parameters"],
        "steps": trained["steps"],
        "zero_shot_top1": measured["zero_shot_top1"],
        "mean_per_class_recall": measured["mean_per_class_recall"],
        "agreement_top1": measured["agreement_top1"],
        "mean_cosine": measured["mean_cosine"],
        "share_of_teacher": measured["zero_shot_top1"] / measured["teacher_top1"],
    }


def _curve(folder: DemoFolder, plan: StudentPlan) -> Curve:
    """Returns loss and cosine of a run against its steps, each point the mean of a few of them."""
    lines = RunFolder(folder.run(plan.name)).metrics.read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    width = max(1, len(metrics) // _POINTS_OF_A_CURVE)
    groups = [metrics[first : first + width] for first in range(0, len(metrics), width)]

    def points(key: str) -> tuple[tuple[float, float], ...]:
        return tuple((group[-1]["step"], sum(line[key] for line in group) / len(group)) for group in groups)

    return Curve(plan.name, loss=points("loss"), cosine=points("cosine"))
