"""The choices of method that `benchmarks.method` measures: what changes against which base.

Every change keeps the steps' cost: the same student, and the same number of images that pass through it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.demo.steps import NEIGHBOURS
from pipeline.demo.teacher import IMAGE_ARCHITECTURE

Changes = Mapping[str, Any]
"""Fields of `stages.distill.config.DistillConfig`."""

STUDENT = "timm:resnet10t?image_size=32"
START_STUDENT = f"timm:{IMAGE_ARCHITECTURE}?image_size=32"
BATCH = 64
_SOME_TEXTS = 256


@dataclass(frozen=True)
class Effect:
    """One choice.

    Attributes:
        variants: name -> what differs from the base.
        base: what the base of this choice has beyond the base of all.
        against: the words for the base.
    """

    variants: Mapping[str, Changes]
    base: Changes = field(default_factory=dict)
    against: str = "the base"


def base_of(*, student: str, steps: int, batch_size: int, learning_rate: float, min_crop: float) -> dict[str, Any]:
    """Returns what all runs share: published losses and temperatures, and what a small corpus needs."""
    return {
        "student": student,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "min_crop": min_crop,
    }


def effects_of(steps: int, batch_size: int, start: Path = Path("start")) -> dict[str, Effect]:
    """Returns every choice by name, for runs of `steps` steps of `batch_size` images.

    Args:
        steps: of the base.
        batch_size: likewise.
        start: file with pretrained weights of `START_STUDENT`.
    """
    return {
        "losses": Effect(
            {
                "vl alone": _weights(vl=1),
                "pvl alone": _weights(pvl=1),
                "udist alone": _weights(udist=1),
                "feature alone": _weights(feature=1),
                "vl + pvl + feature": _weights(vl=0.7, pvl=0.3, feature=3),
            },
            against="vl 0.7 + pvl 0.3",
        ),
        "feature weight": Effect(
            {f"{weight:g}": _weights(vl=0.7, pvl=0.3, feature=weight) for weight in (0.3, 1, 3, 10, 30)},
            against="0",
        ),
        "logit scale": Effect({f"{scale}": {"logit_scale": float(scale)} for scale in (20, 50)}, against="100"),
        "sentences": Effect(
            {f"{number}": {"text_batch_size": number} for number in (64, 256, 1024)}, against="all of the step's corpus"
        ),
        "mined sentences": Effect(
            {
                f"share {share}": {"negatives": f"mined:{NEIGHBOURS}", "mined_share": share, **_some_texts()}
                for share in (0.25, 0.5)
            },
            base=_some_texts(),
            against=f"{_SOME_TEXTS} random ones",
        ),
        "min crop": Effect(
            {f"{share}": {"min_crop": share} for share in (0.08, 0.2, 0.7, 1.0)}, against="that of the base"
        ),
        "flip": Effect({"none": {"flip": False}}, against="half"),
        "learning rate": Effect(
            {f"{rate:g}": {"learning_rate": rate} for rate in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)},
            against="that of the base",
        ),
        "batch": Effect(
            {
                f"{batch_size // 2} images": {"batch_size": batch_size // 2, "steps": steps * 2},
                f"{batch_size * 2} images": {"batch_size": batch_size * 2, "steps": steps // 2},
                f"{batch_size * 4} images": {"batch_size": batch_size * 4, "steps": steps // 4},
            },
            against=f"{batch_size} images, as many in all",
        ),
        "weight decay": Effect({f"{decay:g}": {"weight_decay": decay} for decay in (0.0, 0.2)}, against="0.05"),
        "warm-up": Effect({f"{share:g}": {"warmup_share": share} for share in (0.0, 0.2)}, against="0.04 of the steps"),
        "ema": Effect({f"{decay}": {"ema": decay} for decay in (0.9, 0.99)}, against="none"),
        "start": Effect(
            {"ImageNet weights": {"student": START_STUDENT, "init": str(start)}},
            base={"student": START_STUDENT},
            against="random weights of the same EfficientNet-Lite2",
        ),
        "clip grad": Effect({f"{norm:g}": {"clip_grad": norm} for norm in (0.5, 2.0)}, against="none"),
    }


def _weights(**weights: float) -> Changes:
    return {"weights": {"vl": 0.0, "pvl": 0.0, "udist": 0.0, "feature": 0.0, **weights}}


def _some_texts() -> Changes:
    return {"text_batch_size": _SOME_TEXTS}
