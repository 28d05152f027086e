"""`RUN@STEP`: one checkpoint of a run, finished or not, by name; and the student that is in it.

STEP is a number of steps that a checkpoint is kept of, `newest`, or `best`: the step that `RUN/checkpoints/best.json`
names, the best one on held-out pictures so far. A folder whose own name holds an @ is itself, where it exists.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from cache_schema.errors import DamagedError, MismatchError, UnfinishedError, UsageError
from cache_schema.json_file import read_sealed
from stages.runs.checkpoint import Checkpoint, checkpoint_steps, read_checkpoint, read_checkpoint_sha256
from stages.runs.folder import RunFolder
from stages.runs.record import RunRecord, read_record
from stages.students import Student, TowerDescription
from stages.teachers.checkpoint_weights import load_all

NEWEST, BEST = "newest", "best"
_WEIGHTS, _AVERAGED = "model.tower.", "ema.tower."
_SHOWN_STEPS = 20


@dataclass(frozen=True)
class CheckpointReference:
    """A checkpoint that is kept of a run.

    Attributes:
        name: as given.
        folder: the run.
        step: steps done.
    """

    name: str
    folder: RunFolder
    step: int

    def record(self) -> RunRecord:
        """Returns what run.json says; errors as `read_record`."""
        return read_record(self.folder)


def find_checkpoint(name: str | Path) -> CheckpointReference | None:
    """Returns the checkpoint that `name` refers to, or None where it is no `RUN@STEP` of a folder that exists.

    Raises:
        UsageError: the folder is no run, or has no such checkpoint; lists those that it has.
        DamagedError: best.json is damaged.
    """
    run, _, step = str(name).rpartition("@")
    if not run or Path(name).exists() or not Path(run).is_dir():
        return None
    folder = RunFolder(Path(run))
    if not folder.run_json.exists():
        raise UsageError(
            f"{name} names step {step!r} of {run}, which holds no distillation run (no run.json): name the folder of "
            "a run before the @"
        )
    found = _step_of(folder, step, str(name))
    if found not in checkpoint_steps(folder.checkpoints):
        _refuse(folder, str(name), f"no checkpoint after step {found:,}")
    return CheckpointReference(str(name), folder, found)


def load_checkpoint_student(reference: CheckpointReference) -> Student:
    """Returns the student of a checkpoint, in evaluation mode, on the CPU.

    Its weights are the moving averages where the run keeps them, as a finished run exports them.

    Raises:
        DamagedError: the checkpoint or run.json is damaged.
        MismatchError: the checkpoint belongs to another run, or does not fit the student that run.json describes.
    """
    record = reference.record()
    checkpoint = _read(reference)
    if checkpoint.state.get("run") != record.fingerprint:
        raise MismatchError(
            f"{checkpoint.path} belongs to run {str(checkpoint.state.get('run'))[:12]}, {reference.folder.run_json} is "
            f"that of run {record.fingerprint[:12]}: restore the folder from a copy, or train again"
        )
    student = Student(_description_of(record, reference.folder), seed=0)
    load_all(student.tower, _named(checkpoint, _AVERAGED) or _named(checkpoint, _WEIGHTS), checkpoint.path)
    return student.eval()


def read_reference_sha256(reference: CheckpointReference) -> str:
    """Returns the SHA-256 of the tensors of a checkpoint, as its state file keeps it; errors as `read_checkpoint`."""
    return read_checkpoint_sha256(reference.folder.checkpoints, reference.step)


def unfinished(run: str | Path, *, earlier: Path | None = None) -> UnfinishedError:
    """Returns the error for a run that has not ended; names its newest checkpoint where it has one.

    Args:
        run: its folder.
        earlier: what it exported before it was amended to go on.
    """
    steps = checkpoint_steps(RunFolder(Path(run)).checkpoints)
    newest = f"name {run}@{steps[-1]}, its newest checkpoint, or " if steps else ""
    if earlier is None:
        lacks = "so it has no trained student"
    else:
        lacks, newest = f"and {earlier} is older than it", f"{newest}name {earlier} itself, or "
    return UnfinishedError(f"run {run} has not ended, {lacks}: {newest}run `pipeline distill` again")


def _step_of(folder: RunFolder, step: str, name: str) -> int:
    if re.fullmatch(r"[0-9]{1,12}", step):
        return int(step)
    if step == NEWEST:
        steps = checkpoint_steps(folder.checkpoints)
        return steps[-1] if steps else _refuse(folder, name, "no checkpoint")
    if step == BEST:
        path = folder.checkpoints / "best.json"
        if not path.exists():
            _refuse(folder, name, "no best checkpoint (no best.json: nothing was held out to tell by)")
        best = read_sealed(path).get("step")
        if not isinstance(best, int):
            raise DamagedError(f"{path} names no step, it says {best!r}: name a step by its number")
        return best
    _refuse(folder, name, f"no step {step!r}")


def _refuse(folder: RunFolder, name: str, lacks: str) -> NoReturn:
    steps = checkpoint_steps(folder.checkpoints)
    shown = ("… " if len(steps) > _SHOWN_STEPS else "") + ", ".join(map(str, steps[-_SHOWN_STEPS:]))
    raise UsageError(
        f"{name} is not there: run {folder.root} has {lacks}: "
        + (f"name one of its steps {shown}, or {NEWEST}" if steps else "run `pipeline distill` until it saves one")
    )


def _read(reference: CheckpointReference) -> Checkpoint:
    folder = reference.folder
    try:
        return read_checkpoint(folder.checkpoints, reference.step)
    except DamagedError as error:
        steps = checkpoint_steps(folder.checkpoints)
        others = [str(step) for step in steps if step != reference.step]
        if reference.step not in steps:
            # A run that trains makes room.
            _refuse(folder, reference.name, f"no checkpoint after step {reference.step:,} any more")
        other = f", or name another of its steps {', '.join(others)}" if others else ""
        raise DamagedError(f"{error}: restore it from a copy{other}") from error


def _description_of(record: RunRecord, folder: RunFolder) -> TowerDescription:
    description = TowerDescription.from_json(record.asked.get("student"), folder.run_json)
    vision_cfg = dict(description.vision_cfg)
    if "timm_model_pretrained" in vision_cfg:
        # The weights come from the checkpoint.
        vision_cfg["timm_model_pretrained"] = False
    return replace(description, vision_cfg=vision_cfg)


def _named(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items() if name.startswith(prefix)}
