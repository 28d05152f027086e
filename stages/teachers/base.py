"""The interface of every teacher: two encoders into one space, and an identity that two equal teachers share.

Shape letters: B rows of a batch, C channels, H height, W width, D width of a feature (`dim`), L context length.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import EnvironmentProblem
from cache_schema.json_file import Json
from cache_schema.layout import Modality
from cache_schema.recipe import Recipe
from cache_schema.sha256 import sha256_of_file
from stages.files.opened import state_of
from stages.images.preprocess import Preprocess

PRECISIONS = ("float32", "bfloat16", "float16")


class Teacher(ABC):
    """A loaded dual encoder.

    Attributes:
        specification: how to load it again, with absolute paths.
        identity: JSON; equal exactly for teachers that give the same features. Holds no path.
        files: absolute path -> {"size_bytes", "mtime_ns"}: when these are unchanged, so is `identity`.
        dim: width of a feature of either modality.
        logit_scale: factor on cosines that it was trained with, from its checkpoint.
        logit_bias: bias added to scaled cosines (SigLIP), or None.
        preprocess: how an RGB picture becomes its pixels.
        tokenizer: JSON; what it does to a sentence: name, context_length, cleaning, vocabulary.
        context_length: tokens it reads of a sentence, start and end included; None when unknown.
    """

    specification: str
    identity: dict[str, Json]
    files: dict[str, dict[str, int]]
    dim: int
    logit_scale: float
    logit_bias: float | None
    preprocess: Preprocess
    tokenizer: dict[str, Json]
    context_length: int | None

    known_precisions: ClassVar[tuple[str, ...]] = PRECISIONS

    @abstractmethod
    def encode_images(self, pixels_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns features_BD, float32, not necessarily unit norm, of pixels that `preprocess` has normalised."""

    @abstractmethod
    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns features_BD, float32, not necessarily unit norm, of sentences; longer ones than it reads are cut."""

    def count_tokens(self, texts: list[str]) -> list[int] | None:
        """Returns how many tokens each sentence has before it is cut, start and end included; None when unknown.

        A sentence is cut exactly when its count is above `context_length`.
        """
        return None

    def token_ids(self, texts: list[str]) -> NDArray[np.int64] | None:
        """Returns the tokens_BL that `encode_texts` feeds to the text tower; None when unknown."""
        return None


def recipes_of(teacher: Teacher, precision: str) -> dict[Modality, Recipe]:
    """Returns the recipe of view 0 for each modality, as this `teacher` makes it in this `precision`."""

    def recipe(modality: Modality, preprocess: dict[str, Json]) -> Recipe:
        return Recipe(
            modality=modality,
            teacher=teacher.identity,
            preprocess=preprocess,
            dim=teacher.dim,
            logit_scale=teacher.logit_scale,
            logit_bias=teacher.logit_bias,
            precision=precision,
            specification=teacher.specification,
            files=teacher.files,
        )

    return {
        "image": recipe("image", teacher.preprocess.to_json()),
        "text": recipe("text", {**teacher.tokenizer, "context_length": teacher.context_length}),
    }


def states_of(paths: Iterable[Path]) -> dict[str, dict[str, int]]:
    """Returns absolute path -> {"size_bytes", "mtime_ns"}: whoever finds the same again need not hash the files again.

    Raises:
        EnvironmentProblem: a file cannot be read.
    """
    states = {}
    for path in sorted(paths):
        state = state_of(str(path.absolute()))
        if not state:
            raise EnvironmentProblem(f"cannot read {path}: it is no file: check the path and permissions")
        states[str(path.absolute())] = state
    return states


def files_unchanged(files: Mapping[str, Any]) -> bool:
    """Returns whether every one of `files`, as `states_of` gave them, is still there with the same size and time."""
    return all(state_of(path) == state for path, state in files.items())


def sha256_of_path(path: Path) -> str:
    """Returns the SHA-256 of a teacher's file at `path`.

    Raises:
        EnvironmentProblem: the file cannot be read.
    """
    found = sha256_of_file(path)
    if found is None:
        raise EnvironmentProblem(f"cannot read {path}: it is no file: check the path")
    return found
