"""Checkpoints: everything a run needs to go on exactly where it was, whole or absent, without pickle.

A checkpoint is two files: `step-N.safetensors` with all tensors, then `step-N.json`, sealed, with the SHA-256 of the
first. Only the second makes it real; it is removed first when old checkpoints make room. N is the number of steps done.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from cache_schema import atomic
from cache_schema.errors import DamagedError, DivergedError, MismatchError
from cache_schema.json_file import Json, read_sealed, seal
from cache_schema.reading import read_file
from cache_schema.sha256 import sha256_of
from stages.runs.tensor_file import publish_tensors
from stages.students import Student

_NAME = re.compile(r"step-(\d{9})\.(json|safetensors)")
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_SHOWN = 10


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, read and checked.

    Attributes:
        step: steps done.
        state: JSON kept beside the tensors.
        tensors: by name, on the CPU.
        path: the path of its state file.
    """

    step: int
    state: Mapping[str, Json]
    tensors: Mapping[str, torch.Tensor]
    path: Path


def save_checkpoint(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    step: int,
    run: str,
    state: Mapping[str, Json],
    keep: int,
    also: frozenset[int] = frozenset(),
    fence: atomic.Fence | None = None,
) -> None:
    """Writes a checkpoint after `step` steps and removes all but the newest `keep`, and those of the steps `also`.

    After a crash at any instant the newest whole checkpoint is this one or the one before.

    Args:
        folder: the folder of the run's checkpoints.
        tensors: by name.
        step: steps done.
        run: fingerprint of the run's configuration; another run cannot resume from it.
        state: further JSON.
        keep: at least 1.
        also: steps whose checkpoints stay beside the newest, where they are there.
        fence: the fence of the run's lock.

    Raises:
        DivergedError: a value is not finite; nothing was written, and the checkpoint before stays the newest.
    """
    require_finite(tensors, f"the training state after step {step:,} of {folder}")
    atomic.make_folder(folder)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    written = publish_tensors(_path(folder, step, "safetensors"), plain, fence=fence)
    record = {**state, "step": step, "run": run, "tensors": written._asdict()}
    atomic.publish_json(_path(folder, step, "json"), seal(record), fence=fence)
    remove_checkpoints(folder, keep=keep, also=also)


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps that `folder` keeps a checkpoint of, ascending; a damaged one counts."""
    return sorted(_steps(folder, "json"))


def read_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Returns the checkpoint after `step` steps; raises `DamagedError` when it is damaged, not finite or not there."""
    path = _path(folder, step, "json")
    weights = _path(folder, step, "safetensors")
    state = _read_state(folder, step)
    data = read_file(weights) or b""
    if sha256_of(data) != state["tensors"].get("sha256"):
        raise DamagedError(f"checkpoint {weights} is damaged ({len(data):,} bytes)")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise DamagedError(f"checkpoint {weights} is damaged ({error})") from error
    spoilt = _not_finite(tensors)
    if spoilt:
        raise DamagedError(
            f"checkpoint {weights} holds values that are not finite ({len(spoilt)} tensors: "
            f"{', '.join(spoilt[:_SHOWN])})"
        )
    return Checkpoint(step, state, tensors, path)


def read_checkpoint_sha256(folder: Path, step: int) -> str:
    """Returns the SHA-256 of the tensors after `step` steps, as the state file has it; raises `DamagedError`."""
    return _read_state(folder, step)["tensors"]["sha256"]


def newest_checkpoint(folder: Path, *, run: str, num_steps: int, notice: Callable[[str], None]) -> Checkpoint | None:
    """Returns the newest whole checkpoint, or None where none was ever finished.

    A damaged one, or one with a value that is not finite, is named through `notice`, and the one before it is used.

    Raises:
        DamagedError: there are checkpoints, and all of them are damaged.
        MismatchError: the newest whole one belongs to another run or lies beyond its last step.
    """
    steps = reversed(checkpoint_steps(folder))
    damaged = []
    for step in steps:
        try:
            checkpoint = read_checkpoint(folder, step)
        except DamagedError as error:
            damaged.append(str(error))
            continue
        for said in damaged:
            notice(f"{said}; going on from step {step:,} instead")
        if checkpoint.state.get("run") != run:
            raise MismatchError(
                f"{checkpoint.path} belongs to run {str(checkpoint.state.get('run'))[:12]}, this one is {run[:12]}: "
                "use another --out, or start over with --fresh"
            )
        if not 0 <= step <= num_steps:
            raise MismatchError(
                f"{checkpoint.path} is at step {step:,} of a run of {num_steps:,}: start over with --fresh"
            )
        return checkpoint
    if damaged:
        raise DamagedError(f"all checkpoints are damaged ({'; '.join(damaged[:3])}): start over with --fresh")
    return None


def remove_checkpoints(folder: Path, *, keep: int, also: frozenset[int] = frozenset()) -> None:
    """Removes all but the newest `keep` checkpoints and those of the steps `also`, and tensors without a state file.

    A step in `also` that is among the newest makes no room for an older one.
    """
    states = checkpoint_steps(folder)
    for step in set(states[: max(0, len(states) - keep)]) - also:
        atomic.remove_file(_path(folder, step, "json"))
    for step in _steps(folder, "safetensors") - _steps(folder, "json"):
        atomic.remove_file(_path(folder, step, "safetensors"))


def require_finite(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Raises `DivergedError` when a value of `tensors`, which are `what`, is not finite; lists the first ten."""
    spoilt = _not_finite(tensors)
    if spoilt:
        raise DivergedError(
            f"{what} is not finite ({len(spoilt)} tensors: {', '.join(spoilt[:_SHOWN])}): the last checkpoint stays; "
            "lower the learning rate or use float32, with --fresh or another --out"
        )


def tensors_of(student: Student, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns all tensors of a training state: weights and statistics, and both moments of every parameter."""
    tensors = {f"model.{name}": value for name, value in student.state_dict().items()}
    for name, parameter in student.named_parameters():
        for moment, value in _moments_of(optimizer, parameter).items():
            tensors[f"{moment}.{name}"] = value
    return tensors


def restore(
    student: Student,
    optimizer: torch.optim.Optimizer,
    checkpoint: Checkpoint,
    *,
    beside: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Puts the tensors of `checkpoint` into student and optimizer, and the further ones into those `beside` them.

    Raises:
        MismatchError: tensors are missing, unexpected or of another shape or dtype; lists the first ten. Nothing was
            changed then.
    """
    beside = beside or {}
    wanted = {**tensors_of(student, optimizer), **beside}
    found = checkpoint.tensors
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} is {found[name].dtype} {tuple(found[name].shape)} instead of {value.dtype} {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and (found[name].shape != value.shape or found[name].dtype != value.dtype)
    ]
    if problems:
        raise MismatchError(
            f"{checkpoint.path} does not fit this student ({len(problems)} tensors: {'; '.join(problems[:_SHOWN])}): "
            "start over with --fresh"
        )
    for name, value in beside.items():
        value.copy_(found[name])
    student.load_state_dict({name: found[f"model.{name}"] for name in student.state_dict()})
    for name, parameter in student.named_parameters():
        if found[f"step.{name}"] > 0:
            # Fused AdamW walks through memory, so moments need the very strides of their parameter.
            optimizer.state[parameter] = {
                "exp_avg": torch.empty_like(parameter).copy_(found[f"exp_avg.{name}"]),
                "exp_avg_sq": torch.empty_like(parameter).copy_(found[f"exp_avg_sq.{name}"]),
                "step": found[f"step.{name}"].to(parameter.device, copy=True),
            }


def _moments_of(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    state = optimizer.state.get(parameter)
    if state:
        return {moment: state[moment] for moment in _MOMENTS}
    zero = torch.zeros_like(parameter, device="cpu")
    return {"exp_avg": zero, "exp_avg_sq": zero.clone(), "step": torch.zeros(())}


def _read_state(folder: Path, step: int) -> dict[str, Json]:
    path = _path(folder, step, "json")
    state = read_sealed(path)
    if not isinstance(state.get("tensors"), dict) or state.get("step") != step:
        raise DamagedError(f"{path} is not the state of step {step}")
    return state


def _not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    return [name for name, value in tensors.items() if not torch.isfinite(value).all()]


def _path(folder: Path, step: int, suffix: str) -> Path:
    return folder / f"step-{step:09d}.{suffix}"


def _steps(folder: Path, suffix: str) -> set[int]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {int(found[1]) for name in names if (found := _NAME.fullmatch(name)) and found[2] == suffix}
