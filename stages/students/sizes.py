"""Which size of picture an image tower takes, for a person whose size it does not take."""

from collections.abc import Iterator
from typing import Any

import torch

TROUBLES = (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, KeyError)
"""What open_clip and timm raise when an architecture cannot be built, or does not take a picture."""

_STEP = 32
"""Most backbones that take several sizes take multiples of it: patches of 16 or 32, or five halvings."""


@torch.no_grad()
def find_size_that_works(vision_cfg: dict[str, Any], dim: int, asked: tuple[int, int]) -> int | None:
    """Returns a side in pixels with which `vision_cfg` gives features of width `dim`, tried without any memory.

    That is the next multiple of 32, or else the size that the architecture was made for; None where neither works, so
    that the size is not what is wrong.

    open_clip 3.3.0 passes no size on to timm, so a backbone with a table of positions or a fixed grid of windows (Swin,
    SigLIP, EVA02, PE-Core, ViTamin, …) is always built for its own; a size that the student alone knew could not be
    loaded again by open_clip.
    """
    from open_clip.model import _build_vision_tower

    for side in _sides(vision_cfg.get("timm_model_name"), asked):
        try:
            with torch.device("meta"):
                tower = _build_vision_tower(dim, {**vision_cfg, "image_size": side, "timm_model_pretrained": False})
                features = tower.eval()(torch.zeros(2, 3, side, side))
        except TROUBLES:
            continue
        if tuple(getattr(features, "shape", ())) == (2, dim):
            return side
    return None


def _sides(backbone: str | None, asked: tuple[int, int]) -> Iterator[int]:
    """Yields the sides to try, but the one that was asked for."""
    above = -(-max(asked) // _STEP) * _STEP
    sides = (above, above - _STEP, *([_side_of_its_own(backbone)] if backbone else [224]))
    yield from (side for side in dict.fromkeys(sides) if side > 0 and (side, side) != asked)


def _side_of_its_own(backbone: str) -> int:
    """Returns the side that a timm backbone is made for; 0 where it is not known, or not square."""
    import timm

    if not timm.is_model(backbone):
        return 0
    with torch.device("meta"):
        trunk: Any = timm.create_model(backbone)
    built_for = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    height, width = built_for or trunk.default_cfg["input_size"][1:]
    return int(height) if height == width else 0
