"""Runs side by side: how far each is, what it reached, and in what their methods differ. Nothing is written here."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache_schema.errors import DamagedError, RefusedError, UsageError
from cache_schema.json_file import Json, parse_json
from cache_schema.lock import holder_of
from cache_schema.reading import read_file
from stages.runs.folder import RunFolder
from stages.runs.record import RunRecord, read_record

ENDED, STOPPED, TRAINED_NOW, DAMAGED, REFUSED = "ended", "stopped", "trained now", "damaged", "refused"
"""States of a run; one whose lock another machine holds is `locked by HOST`."""

CURVES = ("loss", "cosine", "learning_rate", "held_out_agreement")
_SPEED_STEPS = 100
"""Of the last steps, over which images per second are counted."""
_TAIL_BYTES = 65_536

Points = tuple[tuple[float, float], ...]
"""(step, value), steps ascending."""


@dataclass(frozen=True)
class ComparedRun:
    """What is said of a run beside others.

    Attributes:
        name: its path below the folder that all the runs have in common.
        run: its folder.
        state: one of the states above.
        problem: why it cannot be read; None where it can, and then alone the others are known.
        student: specification.
        steps_done: steps in its log.
        steps: steps that are asked for, the last amendment counted.
        loss: of the last step that has one.
        cosine: of the same step.
        held_out_agreement: share of held-out pictures with the teacher's own answer, when last measured.
        zero_shot_top1: of its probe, when last measured.
        images_per_s: over the last 100 steps.
        amendments: what was changed in the middle of it, each with step, reason and changes.
        asked: JSON of its method, as run.json has it.
    """

    name: str
    run: Path
    state: str
    problem: str | None = None
    student: str | None = None
    steps_done: int | None = None
    steps: int | None = None
    loss: float | None = None
    cosine: float | None = None
    held_out_agreement: float | None = None
    zero_shot_top1: float | None = None
    images_per_s: float | None = None
    amendments: tuple[Mapping[str, Json], ...] = ()
    asked: Mapping[str, Json] | None = None

    def to_json(self) -> dict[str, Json]:
        """Returns everything but what was asked, which `differences_of` shows where it differs."""
        value = asdict(self)
        del value["asked"]
        return {**value, "run": str(self.run), "amendments": list(value["amendments"])}


def find_runs(places: Sequence[Path]) -> list[Path]:
    """Returns the folders of all runs at and below `places`, each once, in the order of places and names.

    A folder with the logs of a run and no run.json counts too: it is a damaged one. Hidden folders are left out.

    Raises:
        UsageError: there is none at or below one of `places`.
    """
    found: dict[Path, Path] = {}
    for place in places:
        here = list(_runs_below(place))
        if not here:
            what = "holds no run" if place.is_dir() else "is no folder" if place.exists() else "does not exist"
            raise UsageError(f"{place} {what}: name a run that `pipeline distill` made, or a folder of such runs")
        for run in here:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def compare_runs(runs: Sequence[Path]) -> list[ComparedRun]:
    """Returns what is said of each of `runs`, folders, in their order; one that cannot be read says why."""
    common = Path(os.path.commonpath([run.absolute().parent for run in runs]))
    return [_compared(run, str(run.absolute().relative_to(common))) for run in runs]


def differences_of(runs: Sequence[ComparedRun]) -> dict[str, list[Json]]:
    """Returns field -> its value in each of `runs` that can be read, for what they were asked and is not equal in all.

    Fields of fields have dotted names. Where a run lacks a field, such as one of an older format, its value is None.
    """
    flat = [dict(_fields_of(run.asked)) for run in runs if run.asked is not None]
    names = dict.fromkeys(name for fields in flat for name in fields)
    values = {name: [fields.get(name) for fields in flat] for name in names}
    return {name: found for name, found in sorted(values.items()) if any(value != found[0] for value in found)}


def read_curves(run: Path, *, num_points: int) -> dict[str, Points]:
    """Returns a curve for each of `CURVES`; those of every step have about `num_points`, each the mean of a few steps.

    A step that was measured twice, before a kill and after it, counts as it was measured last.

    Raises:
        DamagedError: a line is no JSON object with a step.
    """
    folder = RunFolder(run)
    metrics = _lines(folder.metrics)
    curves = {name: _thinned(metrics, name, num_points) for name in CURVES[:-1]}
    measured = {line["step"]: line["agreement"] for line in _lines(_held_out(folder)) if _is_number(line, "agreement")}
    return {**curves, CURVES[-1]: tuple(sorted(measured.items()))}


def _runs_below(place: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(place):
        if "run.json" in files or {"metrics.jsonl", "speed.jsonl"} <= set(files):
            names.clear()
            yield Path(folder)
        # In place: these are the folders that are looked into next.
        names[:] = sorted(name for name in names if not name.startswith("."))


def _compared(run: Path, name: str) -> ComparedRun:
    folder = RunFolder(run)
    try:
        record = read_record(folder)
        metrics, speed = _tail(folder.metrics), _tail(folder.speed)
        held_out = _lines(_held_out(folder))
        return ComparedRun(
            name,
            run,
            _state_of(folder, record),
            student=record.asked["student"]["specification"],
            steps_done=metrics[-1]["step"] if metrics else 0,
            steps=_steps_of(record),
            loss=_last(metrics, "loss"),
            cosine=_last(metrics, "cosine"),
            held_out_agreement=_last(held_out, "agreement"),
            zero_shot_top1=_last(held_out, "zero_shot_top1"),
            images_per_s=_speed_of(speed),
            amendments=tuple(record.about.get("amendments", ())),
            asked=record.asked,
        )
    except (RefusedError, UsageError) as error:
        # Without run.json a folder is no run to whoever asks for one; found here by its logs, it has lost it.
        is_damaged = isinstance(error, DamagedError | UsageError)
        return ComparedRun(name, run, DAMAGED if is_damaged else REFUSED, problem=str(error))


def _state_of(folder: RunFolder, record: RunRecord) -> str:
    holder = holder_of(folder.lock().path)
    if holder is not None:
        return TRAINED_NOW if holder.is_here else f"locked by {holder.host}"
    return STOPPED if record.result is None else ENDED


def _steps_of(record: RunRecord) -> int:
    amended = [amendment["changes"].get("steps") for amendment in record.about.get("amendments", ())]
    return [record.asked["steps"], *filter(None, amended)][-1]


def _speed_of(lines: Sequence[dict[str, Json]]) -> float | None:
    last = [line for line in lines if _is_number(line, "images_per_s") and _is_number(line, "seconds")]
    last = last[-_SPEED_STEPS:]
    seconds = sum(line["seconds"] for line in last)
    return sum(line["images_per_s"] * line["seconds"] for line in last) / seconds if seconds else None


def _last(lines: Sequence[dict[str, Json]], name: str) -> float | None:
    return next((line[name] for line in reversed(lines) if _is_number(line, name)), None)


def _thinned(lines: Sequence[dict[str, Json]], name: str, num_points: int) -> Points:
    points = [(line["step"], line[name]) for line in lines if _is_number(line, name)]
    width = max(1, len(points) // num_points)
    groups = [points[first : first + width] for first in range(0, len(points), width)]
    return tuple((group[-1][0], sum(value for _, value in group) / len(group)) for group in groups)


def _fields_of(value: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    for name, field in value.items():
        if isinstance(field, dict) and field:
            yield from _fields_of(field, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _held_out(folder: RunFolder) -> Path:
    return folder.root / "held_out.jsonl"


def _lines(path: Path) -> list[dict[str, Json]]:
    return _parsed((read_file(path) or b"").split(b"\n"), path)


def _tail(path: Path) -> list[dict[str, Json]]:
    """Returns the last lines of a log that may have millions: those that are whole in its last 64 kB."""
    data = read_file(path) or b""
    lines = data[-_TAIL_BYTES:].split(b"\n")
    return _parsed(lines[len(data) > _TAIL_BYTES :], path)


def _parsed(lines: Sequence[bytes], path: Path) -> list[dict[str, Json]]:
    """Returns the lines that are whole: behind the last line end, one may be under way."""
    parsed = [parse_json(line, path) for line in lines[:-1]]
    wrong = [line for line in parsed if not isinstance(line, dict) or not _is_number(line, "step")]
    if wrong:
        raise DamagedError(f"{path} has the line {str(wrong[0])[:60]!r}, which names no step: restore it from a copy")
    return parsed


def _is_number(line: Mapping[str, Any], name: str) -> bool:
    return isinstance(line.get(name), int | float) and not isinstance(line[name], bool)
