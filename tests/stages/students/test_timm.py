"""A timm backbone is described for open_clip: its own pooling, then one linear layer, and the options that it knows."""

from typing import Any

import pytest
import torch

from cache_schema.errors import UsageError
from stages.images.preprocess import Preprocess
from stages.students.base import CLIP_MEAN, CLIP_STD, Student
from stages.students.timm import describe


def test_a_bare_name_is_random_weights_for_224_pixels_without_dropout() -> None:
    description = describe("test_vit", 5, quick_gelu=None)
    assert description.specification == "timm:test_vit" and description.dim == 5
    assert description.preprocess == Preprocess(size=(224, 224), mean=CLIP_MEAN, std=CLIP_STD)
    assert description.vision_cfg == {
        "image_size": 224,
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_drop": 0.0,
        "timm_drop_path": None,
    }


def test_every_option_arrives_where_open_clip_looks_for_it() -> None:
    rest = "test_vit?image_size=48&drop=0.25&drop_path=0.5&pretrained=true"
    description = describe(rest, 5, quick_gelu=None)
    wanted = {"image_size": 48, "timm_drop": 0.25, "timm_drop_path": 0.5, "timm_model_pretrained": True}
    assert wanted.items() <= description.vision_cfg.items()
    assert description.specification == f"timm:{rest}" and description.preprocess.size == (48, 48)


def test_dropout_and_stochastic_depth_are_in_the_tower_that_is_built() -> None:
    from timm.layers import DropPath

    def found(rest: str) -> tuple[list[float], list[float]]:
        tower: Any = Student(describe(rest, 5, quick_gelu=None), seed=0).tower
        paths = [part.drop_prob for part in tower.modules() if isinstance(part, DropPath)]
        return [part.p for part in tower.head.modules() if isinstance(part, torch.nn.Dropout)], paths

    drops, paths = found("test_vit?image_size=32&drop=0.25&drop_path=0.5")
    assert drops == [0.25] and max(paths) == pytest.approx(0.5)
    drops, paths = found("test_vit?image_size=32")
    assert not any(drops) and not any(paths)


@pytest.mark.parametrize(("given", "kept"), [(None, False), (False, False), (True, True)])
def test_quick_gelu_is_kept_for_the_model_around_the_tower(given: bool | None, kept: bool) -> None:
    assert describe("test_vit", 5, quick_gelu=given).quick_gelu is kept


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_features_are_one_linear_layer_on_the_pooled_output_of_the_backbone(name: str) -> None:
    import timm

    tower: Any = Student(describe(f"{name}?image_size=32", 5, quick_gelu=None), seed=0).eval().tower
    trunk = timm.create_model(name, num_classes=0, **({"dynamic_img_size": True} if name == "test_vit" else {})).eval()
    trunk.load_state_dict(tower.trunk.state_dict(), strict=True)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (weight,) = (value for key, value in tower.head.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels), trunk(pixels) @ weight.T)


def test_a_backbone_with_a_hidden_layer_in_its_head_projects_with_its_own_classifier() -> None:
    vision_cfg = describe("mobilenetv3_small_050?image_size=32", 5, quick_gelu=None).vision_cfg
    assert (vision_cfg["timm_pool"], vision_cfg["timm_proj"]) == ("avg", "")


def test_dropout_is_refused_where_open_clip_would_drop_it_silently_and_zero_is_none() -> None:
    name = "mobilenetv3_small_050"
    with pytest.raises(UsageError) as refusal:
        describe(f"{name}?drop=0.1", 5, quick_gelu=None)
    assert str(refusal.value) == (
        f"student '{name}?drop=0.1': open_clip gives {name} no dropout before its projection: leave drop out"
    )
    assert describe(f"{name}?drop=0", 5, quick_gelu=None).vision_cfg["timm_drop"] == 0.0


@pytest.mark.parametrize("rest", ["", "?image_size=32", "no-such-net-at-all", "Test_Vit_", "hf-hub:org/name"])
def test_an_unknown_backbone_is_refused_with_few_and_near_names(rest: str) -> None:
    with pytest.raises(UsageError, match=r"^unknown timm student '") as refusal:
        describe(rest, 5, quick_gelu=None)
    assert str(refusal.value).partition("known: ")[2].count(",") < 8


def test_a_misspelt_backbone_names_the_right_one() -> None:
    with pytest.raises(UsageError, match=r"unknown timm student 'test_vti' \(did you mean 'test_vit\d?'\?\); known: "):
        describe("test_vti", 5, quick_gelu=None)
