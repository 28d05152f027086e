"""Recipes: everything that made the features of an array, and the fingerprint that two makers must share."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from cache_schema.errors import DamagedError
from cache_schema.json_file import Json, fingerprint_of
from cache_schema.layout import Modality

_BESIDE = ("specification", "files", "tools", "probes_sha256")

IMPORTED = "imported"
"""Kind of a teacher that is known only by features that others computed with it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that can change a feature of one array by more than rounding.

    Attributes:
        modality: "image" or "text".
        teacher: the teacher's identity as JSON: kind, name, architecture, activation, SHA-256 of its files.
        preprocess: for images size, mean, std, interpolation, resize mode; for texts tokenizer, context length and
            cleaning.
        decoding: the rules by which bytes become an upright picture or a clean sentence before the teacher sees them.
        dim: width of a feature.
        logit_scale: factor on cosines that the teacher was trained with (100 for CLIP), read from its checkpoint.
        logit_bias: the teacher's logit bias (SigLIP), or None.
        precision: the precision of the teacher's forward pass: "float32", "bfloat16" or "float16".
        view: 0 is the teacher's own evaluation preprocessing.
        dtype: the type of the stored features.
        specification: how the teacher was named on the command line. Outside the fingerprint.
        files: absolute path -> {"size_bytes", "mtime_ns"} of the teacher's files when last hashed, so that a rerun with
            nothing to do need not load them. Outside the fingerprint.
        tools: versions of the programs that made the array. Outside the fingerprint.
        probes_sha256: of the probes' file beside the recipe; empty where there is none. Outside the fingerprint.
    """

    modality: Modality
    teacher: Mapping[str, Json]
    preprocess: Mapping[str, Json]
    dim: int
    logit_scale: float
    logit_bias: float | None
    precision: str
    decoding: Mapping[str, Json] = field(default_factory=dict)
    view: int = 0
    dtype: str = "float16"
    specification: str = ""
    files: Mapping[str, Json] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    probes_sha256: str = ""

    @property
    def is_imported(self) -> bool:
        """Returns whether others computed the features: their teacher cannot be loaded, and there are no probes."""
        return self.teacher.get("kind") == IMPORTED

    @property
    def identity(self) -> dict[str, Json]:
        """Returns the fields that the fingerprint covers."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _BESIDE}

    @cached_property
    def fingerprint(self) -> str:
        """Returns the SHA-256 over `identity`, as 64 hexadecimal digits."""
        return fingerprint_of(self.identity)

    def to_json(self) -> dict[str, Json]:
        """Returns the JSON form kept in recipe.json; `from_json` is its inverse."""
        beside = {name: dict(value) if isinstance(value := getattr(self, name), Mapping) else value for name in _BESIDE}
        return {"fingerprint": self.fingerprint, "recipe": self.identity, **beside}

    @staticmethod
    def from_json(value: Json, where: object) -> "Recipe":
        """Returns the recipe that `to_json` wrote.

        Raises:
            DamagedError: a field is missing or unknown, or the fingerprint is not that of the fields.
        """
        try:
            beside = {"probes_sha256": "", **value}  # the first caches do not have it
            recipe = Recipe(**value["recipe"], **{name: beside[name] for name in _BESIDE})
            stored = value["fingerprint"]
        except (KeyError, TypeError) as error:
            raise DamagedError(f"{where} is not a recipe ({error}): restore it from a copy") from error
        if recipe.fingerprint != stored:
            raise DamagedError(
                f"{where} was changed by hand: its fields give fingerprint {recipe.fingerprint[:12]}, "
                f"it says {str(stored)[:12]}: restore it from a copy"
            )
        return recipe


def differences(ours: Any, theirs: Any, field_name: str = "") -> list[tuple[str, Any, Any]]:
    """Returns (dotted field name, our value, their value) for every leaf in which two JSON values differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        found = []
        for key in sorted({*ours, *theirs}):
            found += differences(ours.get(key), theirs.get(key), f"{field_name}.{key}".lstrip("."))
        return found
    if isinstance(ours, tuple | list) and isinstance(theirs, tuple | list):
        ours, theirs = list(ours), list(theirs)
    return [] if ours == theirs else [(field_name, ours, theirs)]


def array_name(specification: str, view: int = 0) -> str:
    """Returns the name of the array of a teacher's `view`: its specification in the letters that a name may have.

    `open_clip:ViT-L-14/openai`, view 0, gives `vit-l-14-openai.v0`.
    """
    kind, _, rest = specification.partition(":")
    words = re.sub(r"[^a-z0-9]+", "-", (rest.partition("?")[0] or kind).lower()).strip("-")
    return f"{words[-60:].strip('-') or 'teacher'}.v{view}"
