"""The `open_clip:` student: the image tower of any open_clip model configuration, random unless weights are named.

`open_clip:ViT-B-32`, or with options: `open_clip:ViT-B-32?image_size=128&patch_dropout=0.25&quick_gelu=true`, or
`open_clip:ViT-B-32?pretrained=TAG`, which may be a checkpoint file too.
"""

from copy import deepcopy

from cache_schema.errors import unknown_name
from stages.images.preprocess import Preprocess
from stages.students.base import CLIP_MEAN, CLIP_STD, TowerDescription
from stages.students.specification import name_and_options, pixels, share, switch, weights
from stages.students.starts import Start, start_of_open_clip

_OPTIONS = {"image_size": pixels, "patch_dropout": share, "quick_gelu": switch, "pretrained": weights}


def start_of(rest: str, init: str | None) -> Start | None:
    """Returns the weights that `rest` or `init`, a tag or a path, asks to begin with; None where neither does."""
    name, options = name_and_options(rest, _OPTIONS)
    asked = init or options.get("pretrained")
    return None if asked in (None, "false") else start_of_open_clip(name, asked)


def describe(rest: str, dim: int, *, quick_gelu: bool | None) -> TowerDescription:
    """Returns the description of the student that `rest`, a specification without its `open_clip:`, names.

    Args:
        rest: model name and options.
        dim: width of a feature.
        quick_gelu: the activation where `rest` does not say; None for that of the model configuration.

    Raises:
        UsageError: unknown model or option.
    """
    import open_clip

    name, options = name_and_options(rest, _OPTIONS)
    model_cfg = deepcopy(open_clip.get_model_config(name)) if name else None
    if model_cfg is None:
        raise unknown_name("open_clip student", name, open_clip.list_models())
    if quick_gelu is None:
        quick_gelu = bool(model_cfg.get("quick_gelu", False))
    quick_gelu = options.pop("quick_gelu", quick_gelu)
    options.pop("pretrained", None)
    # `timm_model_pretrained` would fetch weights whenever the tower is built again.
    vision_cfg = {**model_cfg["vision_cfg"], **options, "output_tokens": False}
    if vision_cfg.get("timm_model_name"):
        vision_cfg["timm_model_pretrained"] = False
    if vision_cfg.get("timm_proj") == "none" and dim != model_cfg["embed_dim"]:
        # SigLIP's towers end as wide as they are; to another width leads a projection, as in all others.
        vision_cfg["timm_proj"] = "linear"
    size = vision_cfg.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return TowerDescription(
        specification=f"open_clip:{rest}",
        dim=dim,
        vision_cfg=vision_cfg,
        quick_gelu=quick_gelu,
        preprocess=Preprocess(size=(height, width), mean=CLIP_MEAN, std=CLIP_STD),
    )
