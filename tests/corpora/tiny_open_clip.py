"""Builds tiny open_clip models with seeded weights, saved as local directories, for tests."""

import json
from pathlib import Path
from typing import Any

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def tiny_config(
    *, embed_dim: int = 16, image_size: int = 32, quick_gelu: bool = True, **model_cfg: Any
) -> dict[str, Any]:
    """Returns the content of open_clip_config.json for a two-layer ViT and a two-layer text tower, both 32 wide."""
    return {
        "model_cfg": {
            "embed_dim": embed_dim,
            "quick_gelu": quick_gelu,
            "vision_cfg": {"image_size": image_size, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
            **model_cfg,
        },
        "preprocess_cfg": {
            "size": image_size,
            "mode": "RGB",
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        },
    }


def tiny_weights(config: dict[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """Returns seeded tensors for `config`, larger than a fresh model's, so that different inputs differ in feature."""
    import torch
    from open_clip.model import CLIP, CustomTextCLIP

    model_cfg = {key: value for key, value in config["model_cfg"].items() if key != "custom_text"}
    model_class = CustomTextCLIP if config["model_cfg"].get("custom_text") else CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = dict(model_class(**model_cfg).state_dict())
        for name, value in tensors.items():
            if value.ndim >= 2:
                tensors[name] = torch.randn(value.shape) * 2 / value[0].numel() ** 0.5
    return tensors


def save_local_dir(folder: Path, config: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """Writes an open_clip directory and returns it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "open_clip_model.safetensors")
    return folder


def make_tiny_open_clip(
    folder: Path, *, seed: int = 0, embed_dim: int = 16, image_size: int = 32, quick_gelu: bool = True, **model_cfg: Any
) -> Path:
    """Saves a tiny dual encoder in `folder`; `open_clip:local-dir:{folder}` is then a teacher."""
    config = tiny_config(embed_dim=embed_dim, image_size=image_size, quick_gelu=quick_gelu, **model_cfg)
    return save_local_dir(folder, config, tiny_weights(config, seed=seed))
