"""Weight decay pulls the weights of layers, and nothing else, in every tower of open_clip and of timm's families."""

from copy import deepcopy

import open_clip
import pytest
import timm.layers
import torch
from open_clip.model import _build_vision_tower
from torch import nn

from stages.students.decay import names_without_decay

# By class, not by name: what these layers multiply with. Everything else is a table, a token, a scale or a bias.
_WEIGHTS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
_MATRICES = {"weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"}

FAMILIES = ["resnet", "regnet", "mobilenetv3", "mobilenetv4", "efficientnet_b0", "efficientnet_lite0", "convnext_atto"]
FAMILIES += ["convnextv2_atto", "fastvit_t8", "vit_tiny", "vit_relpos_small", "vit_base_patch16_siglip_224", "deit3_s"]
FAMILIES += ["deit_tiny_distilled", "swin_tiny", "swinv2_tiny", "levit_128", "repvit_m1", "efficientvit_m0", "tiny_vit"]
FAMILIES += ["efficientvit_b0", "efficientformerv2_s0", "mobileone_s0", "ghostnet", "maxvit_tiny_tf_224", "coatnet_0"]
FAMILIES += ["mobilevit", "edgenext", "hgnet", "naflexvit_base_patch16_siglip", "eva02_tiny", "beit_base_patch16_224"]
FAMILIES += [
    "coat_tiny",
    "crossvit_tiny_240",
    "mvitv2_tiny",
    "pit_ti",
    "xcit_nano",
    "volo_d1",
    "hiera_tiny",
    "cait_xxs",
]
FAMILIES += ["vit_base_patch16_rope_mixed_224", "swiftformer_xs", "poolformer_s12", "nf_resnet50"]
FAMILIES += ["botnet26t_256", "cait_xxs"]


def decaying_matrices(model: nn.Module) -> set[str]:
    """Returns the names of the matrices and kernels of layers."""
    found = set()
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            is_weight = isinstance(module, _WEIGHTS) and own in _MATRICES and parameter.ndim > 1
            # open_clip's transformer projects with a bare matrix.
            if is_weight or (own == "proj" and type(module) is open_clip.transformer.VisionTransformer):
                found.add(f"{name}.{own}".removeprefix("."))
    return found


def declared_by(model: nn.Module, prefix: str = "") -> set[str]:
    declares = getattr(model, "no_weight_decay", None)
    return {prefix + name for name in declares()} if callable(declares) else set()


def require_matrices_to_decay_and_nothing_else(model: nn.Module, declared: set[str]) -> None:
    decays = {name for name, _ in model.named_parameters()} - names_without_decay(model)
    assert decays == decaying_matrices(model) - declared


@pytest.mark.parametrize("name", open_clip.list_models())
def test_in_every_tower_of_open_clip_the_matrices_of_layers_decay_and_nothing_else(name: str) -> None:
    cfg = deepcopy(open_clip.get_model_config(name))
    cfg["vision_cfg"]["timm_model_pretrained"] = False
    with torch.device("meta"):
        tower = _build_vision_tower(cfg["embed_dim"], cfg["vision_cfg"], False)
    require_matrices_to_decay_and_nothing_else(tower, declared_by(getattr(tower, "trunk", None), "trunk."))


@pytest.mark.parametrize("family", FAMILIES)
def test_in_families_of_timm_the_matrices_of_layers_decay_and_nothing_else(family: str) -> None:
    name = next(name for name in timm.list_models(f"{family}*"))
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    require_matrices_to_decay_and_nothing_else(model, declared_by(model))


@pytest.mark.parametrize(
    ("build", "spared"),
    [
        (lambda: timm.create_model("vit_base_patch16_siglip_224", num_classes=0), "attn_pool.latent"),
        (lambda: timm.create_model("levit_128s", num_classes=0), "stages.0.blocks.0.attn.attention_biases"),
        (lambda: timm.create_model("efficientformerv2_s0", num_classes=0), "stages.3.downsample.attn.attention_biases"),
        (
            lambda: timm.create_model("swin_tiny_patch4_window7_224"),
            "layers.0.blocks.0.attn.relative_position_bias_table",
        ),
        (lambda: timm.create_model("swinv2_tiny_window8_256"), "layers.0.blocks.0.attn.logit_scale"),
        (lambda: timm.create_model("fastvit_t8"), "stages.0.blocks.0.layer_scale.gamma"),
        (lambda: timm.create_model("edgenext_xx_small"), "stages.1.blocks.1.xca.temperature"),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), "dist_token"),
        (lambda: timm.layers.AttentionPoolLatent(8, num_heads=2, latent_len=3), "latent"),
        (lambda: open_clip.transformer.AttentionalPooler(8, 8, n_head=2, n_queries=4), "query"),
    ],
)
def test_tables_tokens_and_scales_of_more_axes_are_spared(build: object, spared: str) -> None:
    with torch.device("meta"):
        model = build()  # type: ignore[operator]
    assert spared in dict(model.named_parameters())
    assert spared in names_without_decay(model)
