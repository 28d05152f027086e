"""Weights that a student begins with: published ones, a checkpoint file, or another student.

What belongs to the weights comes along: mean, std and interpolation of the pictures, and the activation. What cannot
be brought is refused; only the projection to another width, or one that the weights lack, starts anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_schema.errors import MismatchError, UsageError
from stages.students.base import Student, TowerDescription
from stages.teachers.base import sha256_of_path
from stages.teachers.checkpoint_weights import read_tensors
from stages.teachers.open_clip_sources import find_source

_VISUAL = "visual."
_OF_PREPROCESS = ("mean", "std", "interpolation")
_SHOWN = 6


@dataclass(frozen=True)
class Start:
    """Weights to begin with, and what belongs to them.

    Attributes:
        name: as a person calls them.
        sha256: of the file that they came from, or of the weights of a student.
        tensors: by the names that they have in a tower, or in the backbone of a timm tower.
        values: of the preprocessing that they were made for; {} where nobody says.
        quick_gelu: activation of open_clip's own transformers; None where it is not concerned.
        specification: of the student that they are of; None for a checkpoint.
    """

    name: str
    sha256: str
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    quick_gelu: bool | None = None
    specification: str | None = None


def start_of_open_clip(model: str, weights: str) -> Start:
    """Returns the image tower of open_clip model `model` with `weights`: a tag, a checkpoint file or a local directory.

    Raises:
        UsageError: no such tag or file.
        EnvironmentProblem: published weights cannot be had.
        RefusedError: the file is damaged, or was made for another activation.
    """
    path = Path(weights).expanduser()
    form = f"local-dir:{path}" if path.is_dir() else f"{model}@{path}" if _is_file(path) else f"{model}/{weights}"
    source = find_source(form, base_folder=Path.cwd())
    tensors = read_tensors(source.weights)
    tower = {name.removeprefix(_VISUAL): value for name, value in tensors.items() if name.startswith(_VISUAL)}
    if not tower:
        raise UsageError(
            f"{source.weights} has no tensor called {_VISUAL}…, so it is no open_clip model: name one, or a student "
            "timm:NAME for the weights of a timm backbone"
        )
    is_own = not source.model_cfg["vision_cfg"].get("timm_model_name")
    values = {key: _as_tuple(source.preprocess[key]) for key in _OF_PREPROCESS if key in source.preprocess}
    return Start(f"open_clip:{form}", source.weights_sha256, tower, values, source.quick_gelu if is_own else None)


def start_of_timm(model: str, weights: str) -> Start:
    """Returns the backbone of timm model `model` from a checkpoint file, with the mean and std that timm knows of it.

    Raises:
        UsageError: no such file.
        RefusedError: it is damaged, or holds more than tensors.
    """
    path = Path(weights).expanduser()
    tensors = read_tensors(path)
    return Start(str(path), sha256_of_path(path), tensors, preprocess_of_timm(model))


def preprocess_of_timm(model: str) -> dict[str, Any]:
    """Returns mean, std and interpolation of the published weights of a timm model; {} where it has none."""
    import timm

    published = timm.get_pretrained_cfg(model)
    if published is None:
        return {}
    return {key: _as_tuple(getattr(published, key)) for key in _OF_PREPROCESS}


def start_of_student(name: str, student: Student, sha256: str) -> Start:
    """Returns the weights of another student, trained or not."""
    is_own = not student.vision_cfg.get("timm_model_name")
    values = {key: getattr(student.preprocess, key) for key in _OF_PREPROCESS}
    tensors = student.tower.state_dict()
    activation = student.description.quick_gelu if is_own else None
    return Start(name, sha256, tensors, values, activation, student.specification)


def described_for(description: TowerDescription, start: Start) -> TowerDescription:
    """Returns `description` with what belongs to the weights of `start`.

    Raises:
        MismatchError: they have another activation than the student must have.
    """
    own = not description.vision_cfg.get("timm_model_name")
    if own and start.quick_gelu is not None and start.quick_gelu != description.quick_gelu:
        made, wanted = (("GELU", "QuickGELU")[flag] for flag in (start.quick_gelu, description.quick_gelu))
        raise MismatchError(
            f"{start.name} was made for {made}, student {description.specification} has {wanted}, as its teacher's "
            f"text tower in the same model must: begin with weights for {wanted}, or say "
            f"quick_gelu={str(start.quick_gelu).lower()} in --student and export the image tower alone"
        )
    return replace(description, preprocess=replace(description.preprocess, **start.values))


@torch.no_grad()
def begin_with(student: Student, start: Start) -> str:
    """Copies the weights of `start` into `student` and returns a sentence about what was taken and what was not.

    Raises:
        MismatchError: they do not fit the tower; lists the first tensors. Nothing was changed then.
    """
    own = student.tower.state_dict()
    given = dict(start.tensors)
    if not given.keys() & own.keys() and any(f"trunk.{name}" in own for name in given):
        given = {f"trunk.{name}": value for name, value in given.items()}
    anew = sorted(name for name, value in own.items() if _may_start_anew(value, given.get(name), student))
    problems = [f"{name} is missing" for name in own if name not in given and name not in anew]
    problems += [f"{name} is unexpected" for name in given if name not in own and not _is_classifier(name, student)]
    problems += [
        f"{name} is {tuple(given[name].shape)} there, {tuple(value.shape)} here"
        for name, value in own.items()
        if name in given and name not in anew and given[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise MismatchError(
            f"{start.name} does not fit student {student.specification} ({'; '.join(problems[:_SHOWN])}{more}): name "
            "the architecture, image_size included, that the weights were made for"
        )
    taken = [name for name in own if name in given and name not in anew]
    student.tower.load_state_dict({**own, **{name: given[name].to(own[name].dtype) for name in taken}})
    values = ", ".join(f"{key} {start.values[key]}" for key in start.values) or "no mean and std, so CLIP's stay"
    rest = f"; {', '.join(anew)} start anew" if anew else ""
    return f"{student.specification} begins with {len(taken):,} tensors of {start.name} ({values}){rest}"


def _may_start_anew(own: Tensor, given: Tensor | None, student: Student) -> bool:
    """Returns whether a tensor is of the projection to the teacher's width, and cannot be taken."""
    dim = student.description.dim
    if dim not in own.shape:
        return False
    if given is None:
        # A backbone without a projection.
        return own.ndim <= 2
    if given.shape == own.shape or given.ndim != own.ndim:
        return False
    different = [ours for ours, theirs in zip(own.shape, given.shape, strict=True) if ours != theirs]
    return different == [dim]


def _is_classifier(name: str, student: Student) -> bool:
    """Returns whether a tensor is of the classifier that a timm backbone was published with."""
    import timm

    model = student.vision_cfg.get("timm_model_name")
    published = timm.get_pretrained_cfg(model) if model else None
    classifiers = (published.classifier if published else None) or ()
    names = (classifiers,) if isinstance(classifiers, str) else classifiers
    return any(name.startswith(f"trunk.{classifier}.") for classifier in names)


def _is_file(path: Path) -> bool:
    return path.is_file() or path.suffix in (".safetensors", ".pt", ".pth", ".bin")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
