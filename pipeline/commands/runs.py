"""`pipeline runs`: compare runs: how far they are, what they reached, and in what their methods differ."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cache_schema.errors import DamagedError, RefusedError, UsageError
from pipeline.options.shared import shared_options
from pipeline.options.types import FilePath
from pipeline.output import print_result, table

if TYPE_CHECKING:
    from stages.distill.compare import ComparedRun

COLUMNS = {
    "run": "run",
    "student": "student",
    "steps": "steps",
    "state": "state",
    "loss": "loss",
    "cosine": "cosine",
    "held_out_agreement": "agreement",
    "zero_shot_top1": "zero-shot",
    "images_per_s": "images/s",
    "amended": "amended",
}
_NUM_POINTS = 200
"""Of the longest curve."""
_SHOWN = 60
_SHA256 = re.compile("[0-9a-f]{64}")


@click.command(
    epilog="""\b
Examples:
  pipeline runs out
  pipeline runs run1 run2 --page runs.html
Loss and cosine are of the last step; agreement with the teacher and zero-shot accuracy are of
held-out pictures, where a run measures them. Ends with 4 when a run cannot be read."""
)
@click.argument("places", metavar="DIR...", type=FilePath("DIR"), nargs=-1, required=True)
@click.option("--page", type=FilePath("FILE"), help="Write them as one HTML file too, with curves.")
@shared_options
def command(places: tuple[Path, ...], page: Path | None, as_json: bool, quiet: bool) -> None:
    """Compare the runs at and below each DIR: how far they are, what they reached, and in what they differ."""
    from stages.distill.compare import compare_runs, differences_of, find_runs

    found = find_runs(places)
    if page is not None:
        _require_place_of_page(page, found)
    runs = compare_runs(found)
    if page is not None:
        runs = _write_page(page, runs)
    differences = differences_of(runs)
    read = [run for run in runs if run.problem is None]
    unread = [run for run in runs if run.problem is not None]
    print_result(
        {
            "runs": [run.to_json() for run in runs],
            "differences": [
                {"field": field, "values": dict(zip([run.name for run in read], values, strict=True))}
                for field, values in differences.items()
            ],
            "page": None if page is None else str(page),
        },
        as_json=as_json,
        lines=[
            *table([_in_words(_row(run)) for run in runs], list(COLUMNS.values())),
            *_lines_of_differences([run.name for run in read], differences),
            *(f"{run.name}: {run.problem}" for run in unread),
        ],
        next_step=_next_step(read, page),
    )
    if unread:
        names = ", ".join(run.name for run in unread[:10])
        raise RefusedError(
            f"{len(unread):,} of {len(runs):,} runs cannot be read ({names}): do what stands beside each, or leave "
            "them out; the others are shown"
        )


def _row(run: "ComparedRun") -> dict[str, Any]:
    steps = None if run.steps is None else f"{run.steps_done:,} of {run.steps:,}"
    amended = len(run.amendments) or None
    return {**run.to_json(), "run": run.name, "steps": steps, "amended": amended}


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    return {words: row[key] for key, words in COLUMNS.items()}


def _lines_of_differences(names: Sequence[str], differences: dict[str, list[Any]]) -> list[str]:
    if len(names) < 2:
        return []
    if not differences:
        return ["", "all were asked the same"]
    rows = []
    for field, values in differences.items():
        runs_of: dict[str, list[str]] = {}
        for name, value in zip(names, values, strict=True):
            runs_of.setdefault(json.dumps(value), []).append(name)
        for place, (value, having) in enumerate(runs_of.items()):
            shown = {"asked": "" if place else field, "value": _short(json.loads(value)), "runs": ", ".join(having)}
            rows.append(shown)
    return ["", *table(rows, ("asked", "value", "runs"))]


def _short(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    if _SHA256.fullmatch(text):
        return text[:12]
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _next_step(read: Sequence["ComparedRun"], page: Path | None) -> str:
    if page is not None:
        return f"open {shlex.quote(str(page))}"
    ended = [shlex.quote(str(run.run)) for run in read if run.state == "ended"]
    return f"pipeline evaluate {' '.join(ended)} --data DIR" if ended else ""


def _require_place_of_page(page: Path, runs: Sequence[Path]) -> None:
    from stages.files.apart import require_outside_caches

    require_outside_caches(page, "--page")
    if page.is_dir() or page.suffix not in (".html", ".htm"):
        raise UsageError(
            f"--page {page} {'is a folder' if page.is_dir() else 'is no .html'}: name a file such as runs.html"
        )
    for run in runs:
        if page.resolve().is_relative_to(run.resolve()):
            raise UsageError(
                f"--page {page} lies inside the run {run}, whose files are its own: name a place outside it"
            )


def _write_page(page: Path, runs: Sequence["ComparedRun"]) -> list["ComparedRun"]:
    """Writes the page, and returns `runs`; one whose curves turn out to be damaged is so in both."""
    from dataclasses import replace

    from cache_schema import atomic
    from pipeline.pages.runs import runs_page
    from stages.distill.compare import DAMAGED, differences_of, read_curves

    curves, known = {}, []
    most_steps = max(run.steps_done or 0 for run in runs)
    for run in runs:
        shown = run
        if run.problem is None:
            try:
                curves[run.name] = read_curves(run.run, num_points=_num_points(run.steps_done or 0, most_steps))
            except DamagedError as error:
                shown = replace(run, state=DAMAGED, problem=str(error), asked=None)
        known.append(shown)
    html = runs_page(
        [_row(run) for run in known],
        COLUMNS,
        curves=curves,
        differences=differences_of(known),
        amendments=[{"run": run.name, **amendment} for run in known for amendment in run.amendments],
    )
    atomic.publish_bytes(page, html.encode())
    return known


def _num_points(num_steps: int, most_steps: int) -> int:
    """Returns the points of a curve of `num_steps`: each is the mean of about as many steps as in other curves."""
    return max(1, round(_NUM_POINTS * num_steps / max(1, most_steps)))
