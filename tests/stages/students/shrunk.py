"""Architectures of families whose smallest member is large, with fewer layers by their own arguments.

`shrunk_NAME` is a name that timm and open_clip know after `register_shrunk`: NAME's code and its size of pictures.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import timm

OF_TIMM: dict[str, dict[str, Any]] = {
    "deit3_small_patch16_224": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "eva02_tiny_patch14_224": {"depth": 2},
    "naflexvit_base_patch16_gap": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "naflexvit_base_patch16_siglip": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "swin_base_patch4_window7_224": {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
    "swinv2_cr_tiny_ns_224": {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
    "tiny_vit_5m_224": {"depths": (1, 1, 2, 1)},
    "vit_base_mci_224": {"depth": 1},
    "eva02_base_patch16_clip_224": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "vit_base_patch16_siglip_224": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "vit_medium_patch16_gap_256": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "vit_pe_core_tiny_patch16_384": {"depth": 2},
    "vit_relpos_medium_patch16_cls_224": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "vit_relpos_small_patch16_224": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "vitamin_small_224": {"depth": 1},
}
"""Backbone -> arguments of its own."""

OF_OPEN_CLIP: dict[str, tuple[dict[str, Any], int]] = {
    "EVA02-B-16": ({}, 512),
    "MobileCLIP2-B": ({}, 512),
    "PE-Core-T-16-384": ({}, 512),
    "ViT-B-16-SigLIP": ({}, 96),
    "ViTamin-S": ({}, 384),
    "coca_ViT-B-32": ({"layers": 2, "width": 128, "attn_pooler_heads": 4}, 512),
    "swin_base_patch4_window7_224": ({}, 640),
    "vit_medium_patch16_gap_256": ({}, 512),
    "vit_relpos_medium_patch16_cls_224": ({}, 512),
}
"""Model -> what its image tower has otherwise, beside a shrunk backbone, and its width of features."""


def register_shrunk(folder: Path) -> None:
    """Makes all of them known in this process; `folder` keeps the configurations for open_clip."""
    for name, smaller in OF_TIMM.items():
        timm.models.register_model(_shrink(name, smaller))
    for name, (smaller, embed_dim) in OF_OPEN_CLIP.items():
        config = open_clip.get_model_config(name)
        vision_cfg = {**config["vision_cfg"], **smaller}
        if "timm_model_name" in vision_cfg:
            vision_cfg["timm_model_name"] = f"shrunk_{vision_cfg['timm_model_name']}"
        path = folder / f"shrunk_{name}.json"
        path.write_text(json.dumps({**config, "embed_dim": embed_dim, "vision_cfg": vision_cfg}))
        open_clip.add_model_config(path)


def _shrink(name: str, smaller: dict[str, Any]) -> Any:
    """Returns the function that makes the backbone `name` with the arguments `smaller`."""
    make = timm.models.model_entrypoint(name)

    def make_smaller(pretrained: bool = False, **arguments: Any) -> Any:
        return make(pretrained=pretrained, **{**smaller, **arguments})

    make_smaller.__name__ = f"shrunk_{name}"
    return make_smaller
