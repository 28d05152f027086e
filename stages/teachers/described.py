"""A teacher as the cache knows it: loaded once per process, told by its recipes, its probes and its device."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cache_schema.json_file import Json
from cache_schema.layout import Modality
from cache_schema.recipe import Recipe
from stages.teachers import Teacher, load_teacher, recipes_of
from stages.teachers.arithmetic import UNKNOWN, Arithmetic, numerics_of
from stages.teachers.base import files_unchanged
from stages.teachers.held import load_held
from stages.teachers.probes import compute_probes, probes_to_bytes


def load_and_describe(
    specification: str, *, device: str, precision: str, decoding: Mapping[Modality, Mapping[str, Json]]
) -> tuple[dict[Modality, Recipe], dict[Modality, bytes]]:
    """Returns the recipe of each modality and its probes (the bytes of probes.npz), as this teacher makes them here.

    Args:
        specification: the specification of the teacher.
        device: where it computes.
        precision: the precision of the forward pass.
        decoding: the rules by which bytes become what the teacher gets, which the recipe keeps.

    Raises: as `load_teacher`, and `RefusedError` when a probe has no finite feature.
    """
    teacher = loaded_teacher(specification, device, precision)
    recipes = {
        modality: replace(recipe, decoding=dict(decoding[modality]), tools=_tool_versions())
        for modality, recipe in recipes_of(teacher, precision).items()
    }
    arithmetic = arithmetic_of(teacher, device, precision)
    probes = {modality: compute_probes(teacher, modality, arithmetic=arithmetic) for modality in recipes}
    return recipes, {modality: probes_to_bytes(values) for modality, values in probes.items()}


# One teacher per process: the process that describes the teacher is often the one that then works with it.
_LOADED: dict[tuple[str, str, str, str], Teacher] = {}


def loaded_teacher(specification: str, device: str, precision: str) -> Teacher:
    """Returns the teacher, the one already in this process while its files are unchanged; errors as `load_teacher`.

    It computes every batch under the settings of the process with which it was loaded.
    """
    key = (specification, device, precision, str(Path.cwd()))
    if key not in _LOADED or not files_unchanged(_LOADED[key].files):
        _LOADED.clear()
        _LOADED[key] = load_held(lambda: load_teacher(specification, device=device, precision=precision))
    return _LOADED[key]


def forget_loaded_teacher() -> None:
    """Gives up the teacher of this process, and its memory on a GPU, where others are to do the work."""
    _LOADED.clear()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def arithmetic_of(teacher: Teacher, device: str, precision: str) -> Arithmetic:
    """Returns how this loaded `teacher` computes; what a user's own factory does inside is not known."""
    own = teacher.identity["kind"] == "python"
    return Arithmetic(UNKNOWN if own else precision, numerics_of(device))


def _tool_versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "open_clip_torch", "transformers", "tokenizers", "pillow", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
