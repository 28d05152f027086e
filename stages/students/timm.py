"""The `timm:` student: any timm image backbone, followed by one linear projection to the teacher's width.

`timm:resnet10t?image_size=64&drop=0.1&drop_path=0.05&pretrained=false`; `drop` acts before the projection. Being built
through open_clip's TimmModel, it is an open_clip image tower like any other.
"""

from dataclasses import replace
from typing import Any

from cache_schema.errors import UsageError, unknown_name
from stages.images.preprocess import Preprocess
from stages.students.base import CLIP_MEAN, CLIP_STD, TowerDescription
from stages.students.specification import name_and_options, pixels, share, weights
from stages.students.starts import Start, preprocess_of_timm, start_of_timm

_OPTIONS = {"image_size": pixels, "drop": share, "drop_path": share, "pretrained": weights}


def start_of(rest: str, init: str | None) -> Start | None:
    """Returns the weights that `rest` or `init`, a path, asks to begin with; timm itself brings its published ones."""
    name, options = name_and_options(rest, _OPTIONS)
    asked = init or options.get("pretrained")
    return None if asked in (None, "true", "false") else start_of_timm(name, asked)


def describe(rest: str, dim: int, *, quick_gelu: bool | None) -> TowerDescription:
    """Returns the description of the student that `rest`, a specification without its `timm:`, names.

    Args:
        rest: name of the backbone and options; `pretrained=true` starts from timm's published weights, with the mean
            and std that they were made for, and `pretrained=FILE` from a checkpoint.
        dim: width of a feature.
        quick_gelu: recorded for the model around the tower; timm backbones bring their own activations.

    Raises:
        UsageError: unknown backbone or option.
    """
    import timm

    name, options = name_and_options(rest, _OPTIONS)
    if not name or not timm.is_model(name):
        raise unknown_name("timm student", name, _short(name, timm.list_models()))
    size = options.get("image_size", 224)
    projection = _projection_of(name, size)
    if options.get("drop") and not projection["timm_proj"]:
        raise UsageError(f"student {rest!r}: open_clip gives {name} no dropout before its projection: leave drop out")
    published = options.get("pretrained") == "true"
    preprocess = Preprocess(size=(size, size), mean=CLIP_MEAN, std=CLIP_STD)
    vision_cfg = {
        "image_size": size,
        "timm_model_name": name,
        "timm_model_pretrained": published,
        **projection,
        "timm_drop": options.get("drop", 0.0),
        "timm_drop_path": options.get("drop_path"),
    }
    return TowerDescription(
        specification=f"timm:{rest}",
        dim=dim,
        vision_cfg=vision_cfg,
        quick_gelu=bool(quick_gelu),
        preprocess=replace(preprocess, **preprocess_of_timm(name)) if published else preprocess,
    )


def _projection_of(name: str, size: int) -> dict[str, str]:
    """Returns open_clip's settings for a linear projection after the backbone's own pooling.

    open_clip 3.3.0 adds a layer as wide as `num_features`, which is not the output of backbones with a hidden layer in
    their head (MobileNetV3, GhostNet, …). There the backbone's own classifier, made as wide as a feature, projects.
    """
    import timm
    import torch

    with torch.device("meta"):
        trunk: Any = timm.create_model(name).eval()
    if trunk.num_features == trunk.head_hidden_size:
        return {"timm_pool": "", "timm_proj": "linear"}
    trunk.reset_classifier(0)
    with torch.no_grad():
        width = trunk(torch.zeros(1, 3, size, size, device="meta")).shape[-1]
    if width == trunk.num_features:
        return {"timm_pool": "", "timm_proj": "linear"}
    return {"timm_pool": "avg", "timm_proj": ""}


def _short(name: str, known: list[str]) -> list[str]:
    """Returns the known names close to `name`: the whole list has over a thousand."""
    import difflib

    return difflib.get_close_matches(name, known, n=8, cutoff=0.4)
