"""A student: an image tower that open_clip can build again from its description, and the preprocessing it wants.

Shape letters: B pictures of a batch, C channels, H height, W width, D width of a feature.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cache_schema.errors import DamagedError, UsageError
from cache_schema.json_file import Json
from stages.images.preprocess import Preprocess
from stages.students.decay import names_without_decay
from stages.students.memory_format import memory_format_on_cpu
from stages.students.rows import rows_share_nothing
from stages.students.sizes import TROUBLES, find_size_that_works

# Source: open_clip 3.3.0, constants.OPENAI_DATASET_MEAN and OPENAI_DATASET_STD, its default for every image tower.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TowerDescription:
    """Everything that builds a student's architecture, and nothing about its weights.

    Attributes:
        specification: as on the command line.
        dim: width of a feature, the teacher's.
        vision_cfg: open_clip's description of the image tower.
        quick_gelu: whether open_clip's own transformer towers use QuickGELU; open_clip has one flag for both towers of
            a model, so a student that shall live in one file with its teacher's text tower takes the teacher's.
        preprocess: evaluation preprocessing; training crops use its size, mean, std and interpolation.
    """

    specification: str
    dim: int
    vision_cfg: dict[str, Any]
    quick_gelu: bool
    preprocess: Preprocess

    def to_json(self) -> dict[str, Json]:
        """Returns the JSON form; `from_json` is its inverse."""
        return {
            "specification": self.specification,
            "dim": self.dim,
            "vision_cfg": self.vision_cfg,
            "quick_gelu": self.quick_gelu,
            "preprocess": self.preprocess.to_json(),
        }

    @staticmethod
    def from_json(value: Json, where: object) -> "TowerDescription":
        """Returns what `to_json` gave; raises `DamagedError` naming `where` when it is something else."""
        try:
            return TowerDescription(**{**value, "preprocess": Preprocess.from_json(value["preprocess"])})
        except (TypeError, KeyError, ValueError) as error:
            raise DamagedError(f"{where} does not describe an image tower ({error}): restore it from a copy") from error


class Student(nn.Module):
    """The image tower of `description`, with random weights drawn from `seed` alone.

    Raises:
        UsageError: open_clip or timm cannot build it, or it does not take pictures of its size.
    """

    def __init__(self, description: TowerDescription, *, seed: int) -> None:
        super().__init__()
        self.description = description
        self.tower = _build_tower(description, seed)
        # SHA-256 of the weights that it was given to begin with.
        self.started_from: str | None = None
        self._memory_format_on_cpu = memory_format_on_cpu(self.tower)

    @property
    def specification(self) -> str:
        return self.description.specification

    @property
    def vision_cfg(self) -> dict[str, Any]:
        return self.description.vision_cfg

    @property
    def preprocess(self) -> Preprocess:
        return self.description.preprocess

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns image_BD, not normalised."""
        return self.tower(pixels_BCHW)

    @property
    def memory_format(self) -> torch.memory_format:
        """Returns the layout in which its weights and pictures should lie where it is now: bring it there first."""
        on_cpu = next(self.parameters()).device.type == "cpu"
        return self._memory_format_on_cpu if on_cpu else torch.channels_last

    @property
    def rows_are_independent(self) -> bool:
        """Returns whether in training each picture's feature is its own: no batch statistics, no random draw."""
        return rows_share_nothing(self.tower)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of parameters that weight decay would harm: biases, norms, tables, tokens and scales."""
        return {f"tower.{name}" for name in names_without_decay(self.tower)}


def _build_tower(description: TowerDescription, seed: int) -> nn.Module:
    # open_clip 3.3.0 has no public function for an image tower alone; this is what its CLIP classes call.
    from open_clip.model import _build_vision_tower

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = _build_vision_tower(description.dim, dict(description.vision_cfg), description.quick_gelu)
            _check_output(tower, description)
    except TROUBLES as error:
        side = find_size_that_works(description.vision_cfg, description.dim, description.preprocess.size)
        advice = "" if side is None else f"image_size={side}, which it takes, or "
        raise UsageError(
            f"cannot build student {description.specification} for {description.preprocess.size} pixels "
            f"({' '.join(str(error).split())[:200]}): use {advice}another architecture"
        ) from error
    return tower


@torch.no_grad()
def _check_output(tower: nn.Module, description: TowerDescription) -> None:
    """Raises `ValueError` when two blank pictures do not give two features of the right width."""
    was_training = tower.training
    features = tower.eval()(torch.zeros(2, 3, *description.preprocess.size))
    tower.train(was_training)
    shape = tuple(getattr(features, "shape", ()))
    if shape != (2, description.dim):
        raise ValueError(f"it gives {shape or type(features).__name__} instead of (2, {description.dim})")
