"""The image tower of an open_clip configuration, with the options asked for and the activation that was decided."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from cache_schema.errors import UsageError
from stages.images.preprocess import Preprocess
from stages.students import build_student
from stages.students.base import CLIP_MEAN, CLIP_STD
from stages.students.open_clip import describe


def test_a_bare_name_is_the_vision_configuration_of_open_clip() -> None:
    description = describe("ViT-B-32", 5, quick_gelu=None)
    assert description.specification == "open_clip:ViT-B-32" and description.dim == 5
    stock = open_clip.get_model_config("ViT-B-32")["vision_cfg"]
    assert description.vision_cfg == {**stock, "output_tokens": False}
    assert description.preprocess == Preprocess(size=(224, 224), mean=CLIP_MEAN, std=CLIP_STD)
    assert description.quick_gelu is False


def test_options_change_the_description_and_never_the_configuration_of_open_clip() -> None:
    before = open_clip.get_model_config("ViT-B-32")
    description = describe("ViT-B-32?image_size=64&patch_dropout=0.25&quick_gelu=true", 5, quick_gelu=None)
    wanted = {"image_size": 64, "patch_dropout": 0.25, "layers": 12}
    assert wanted.items() <= description.vision_cfg.items()
    assert "quick_gelu" not in description.vision_cfg
    assert description.preprocess.size == (64, 64)
    description.vision_cfg["layers"] = 1
    assert open_clip.get_model_config("ViT-B-32") == before


@pytest.mark.parametrize(
    ("rest", "given", "kept"),
    [
        ("ViT-B-32", None, False),
        ("ViT-B-32-quickgelu", None, True),
        ("ViT-B-32", True, True),
        ("ViT-B-32-quickgelu", False, False),
        ("ViT-B-32?quick_gelu=false", True, False),
        ("ViT-B-32?quick_gelu=true", False, True),
    ],
)
def test_the_specification_decides_the_activation_then_the_caller_then_the_configuration(
    rest: str, given: bool | None, kept: bool
) -> None:
    assert describe(rest, 5, quick_gelu=given).quick_gelu is kept


@pytest.fixture
def add_model(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Returns add_model(name, vision_cfg, embed_dim=4): open_clip knows the name for the length of a test."""
    from open_clip import factory

    added: list[Path] = []

    def add(name: str, vision_cfg: dict[str, Any], *, embed_dim: int = 4) -> None:
        added.append(tmp_path / f"{name}.json")
        added[-1].write_text(json.dumps({"embed_dim": embed_dim, "vision_cfg": vision_cfg, "text_cfg": {}}))
        open_clip.add_model_config(added[-1])

    yield add
    for path in added:
        factory._MODEL_CONFIG_PATHS.remove(path)
        del factory._MODEL_CONFIGS[path.stem]


def test_no_published_weights_of_a_backbone_are_fetched(add_model: Callable[..., None]) -> None:
    add_model("tower-of-timm", {"timm_model_name": "test_vit", "timm_model_pretrained": True, "image_size": 32})
    assert describe("tower-of-timm", 5, quick_gelu=None).vision_cfg["timm_model_pretrained"] is False
    assert "timm_model_pretrained" not in describe("ViT-B-32", 5, quick_gelu=None).vision_cfg


@pytest.mark.parametrize(("dim", "projection"), [(96, "none"), (5, "linear")])
def test_a_tower_as_wide_as_its_features_gets_a_projection_to_another_width(
    add_model: Callable[..., None], dim: int, projection: str
) -> None:
    cfg = {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    add_model("small-SigLIP", cfg, embed_dim=96)
    assert describe("small-SigLIP", dim, quick_gelu=None).vision_cfg["timm_proj"] == projection
    student = build_student("open_clip:small-SigLIP", dim, seed=0).eval()
    pixels_BCHW = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    trunk_BD = student.tower.trunk(pixels_BCHW)
    wanted_BD = trunk_BD if dim == 96 else trunk_BD @ student.tower.head.proj.weight.T
    assert trunk_BD.shape == (2, 96)
    torch.testing.assert_close(student(pixels_BCHW), wanted_BD)


def test_siglip_of_open_clip_ends_without_a_projection_at_its_own_width_alone() -> None:
    for name in ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP2-256", "ViT-B-32-SigLIP2-256"):
        stock = open_clip.get_model_config(name)
        assert (stock["embed_dim"], stock["vision_cfg"]["timm_proj"]) == (768, "none")
        assert describe(name, 768, quick_gelu=None).vision_cfg["timm_proj"] == "none"
        assert describe(name, 512, quick_gelu=None).vision_cfg["timm_proj"] == "linear"


def test_a_picture_that_is_not_square_keeps_height_and_width_apart(add_model: Callable[..., None]) -> None:
    add_model("wide-tower", {"image_size": [16, 32]})
    assert describe("wide-tower", 5, quick_gelu=None).preprocess.size == (16, 32)
    assert describe("wide-tower?image_size=48", 5, quick_gelu=None).preprocess.size == (48, 48)


@pytest.mark.parametrize("rest", ["", "?image_size=64", "vit-b-32 ", "ViT-B-32/openai"])
def test_a_name_that_open_clip_does_not_know_is_refused_with_those_it_knows(rest: str) -> None:
    with pytest.raises(UsageError, match=r"unknown open_clip student .*known: .*ViT-B-32, "):
        describe(rest, 5, quick_gelu=None)


@pytest.mark.parametrize("option", ["drop=0.1", "drop_path=0.1", "layers=3"])
def test_an_option_of_another_kind_of_student_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match=r"unknown option of student ViT-B-32 .*known: image_size, patch_dropout"):
        describe(f"ViT-B-32?{option}", 5, quick_gelu=None)


@pytest.mark.parametrize(("dim", "projection"), [(16, ["head.proj.weight"]), (768, [])])
def test_a_tower_that_ends_with_its_pooling_has_a_projection_to_any_other_width(
    dim: int, projection: list[str]
) -> None:
    student = build_student("open_clip:ViT-B-16-SigLIP", dim, seed=0)
    assert [name for name in student.tower.state_dict() if name.startswith("head.")] == projection
    with torch.no_grad():
        assert student.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, dim)
