"""A description builds one tower again, or says why it cannot; weight decay spares what it would harm."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cache_schema.errors import DamagedError, UsageError
from stages.images.preprocess import Preprocess
from stages.students import build_student
from stages.students.base import CLIP_MEAN, CLIP_STD, Student, TowerDescription

PLAIN = TowerDescription(
    specification="open_clip:by-hand",
    dim=6,
    vision_cfg={"image_size": 16, "layers": 1, "width": 8, "head_width": 4, "patch_size": 8},
    quick_gelu=False,
    preprocess=Preprocess(size=(16, 16), mean=CLIP_MEAN, std=CLIP_STD),
)


def pixels_of(seed: int, num_pictures: int = 3) -> torch.Tensor:
    drawn = np.random.default_rng(seed).standard_normal((num_pictures, 3, 16, 16))
    return torch.from_numpy(drawn.astype(np.float32))


def test_mean_and_std_are_those_of_open_clip() -> None:
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    assert (CLIP_MEAN, CLIP_STD) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def test_a_description_survives_json() -> None:
    wide = replace(PLAIN, preprocess=Preprocess((16, 24), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize_mode="squash"))
    for description in (PLAIN, wide, replace(PLAIN, quick_gelu=True)):
        assert TowerDescription.from_json(json.loads(json.dumps(description.to_json())), "there") == description


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: None,
        lambda value: [],
        lambda value: "tower",
        lambda value: {},
        lambda value: {**value, "preprocess": None},
        lambda value: {**value, "preprocess": {}},
        lambda value: {**value, "preprocess": {**value["preprocess"], "size": [16]}},
        lambda value: {**value, "preprocess": {**value["preprocess"], "interpolation": "guess"}},
        lambda value: {**value, "colour": "red"},
        lambda value: {name: kept for name, kept in value.items() if name != "dim"},
    ],
)
def test_what_is_no_description_is_damaged_and_says_where(spoil: Any) -> None:
    with pytest.raises(DamagedError, match=r"^RUN/tower\.json does not describe an image tower \(.*\): restore it"):
        TowerDescription.from_json(spoil(PLAIN.to_json()), "RUN/tower.json")


def test_features_are_those_of_the_image_tower_that_open_clip_builds_of_the_same_weights() -> None:
    from open_clip.model import CLIP

    student = Student(PLAIN, seed=3)
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    model = CLIP(6, PLAIN.vision_cfg, text, quick_gelu=False)
    model.visual.load_state_dict(student.tower.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(student.eval()(pixels_of(0)), model.eval().visual(pixels_of(0)))


def test_quick_gelu_is_the_activation_of_the_tower() -> None:
    from open_clip.transformer import QuickGELU

    def kinds(student: Student) -> set[type]:
        return {type(part) for part in student.modules()} & {torch.nn.GELU, QuickGELU}

    assert kinds(Student(PLAIN, seed=0)) == {torch.nn.GELU}
    assert kinds(Student(replace(PLAIN, quick_gelu=True), seed=0)) == {QuickGELU}


def test_a_new_student_is_in_training_mode_and_shows_what_its_description_says() -> None:
    student = Student(PLAIN, seed=0)
    assert all(part.training for part in student.modules())
    assert student.specification == "open_clip:by-hand"
    assert student.vision_cfg == PLAIN.vision_cfg and student.preprocess == PLAIN.preprocess


def test_features_are_not_normalised() -> None:
    with torch.no_grad():
        norms = Student(PLAIN, seed=0)(pixels_of(0)).norm(dim=1)
    assert not torch.allclose(norms, torch.ones(3), atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg": {**PLAIN.vision_cfg, "layers": "two"}}, r"for \(16, 16\) pixels"),
        ({"vision_cfg": {**PLAIN.vision_cfg, "colour": "red"}}, "unexpected keyword argument 'colour'"),
        ({"vision_cfg": {**PLAIN.vision_cfg, "head_width": 3, "width": 11}}, r"for \(16, 16\) pixels"),
        ({"vision_cfg": {**PLAIN.vision_cfg, "output_tokens": True}}, r"it gives tuple instead of \(2, 6\)"),
    ],
)
def test_a_tower_that_no_size_can_mend_is_refused_without_naming_one(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        Student(replace(PLAIN, **changes), seed=0)
    said = str(refusal.value)
    assert said.startswith("cannot build student open_clip:by-hand for")
    assert said.endswith("): use another architecture") and "\n" not in said


@pytest.mark.parametrize(
    ("specification", "advised"),
    [
        # Of its own size alone: a table of positions, positions relative to each other, and windows.
        ("timm:test_vit3?image_size=64", 160),
        ("timm:test_vit_relpos?image_size=64", 160),
        ("timm:test_maxvit?image_size=100", 160),
        # Of many sizes: too small, or not whole patches.
        ("timm:test_vit?image_size=4", 32),
        ("timm:test_vit?image_size=100", 128),
        ("open_clip:ViT-S-32-alt?image_size=8", 32),
    ],
)
def test_a_tower_that_does_not_take_the_size_names_one_with_which_it_is_built(specification: str, advised: int) -> None:
    with pytest.raises(UsageError) as refusal:
        build_student(specification, 6, seed=0)
    said = str(refusal.value)
    assert said.startswith(f"cannot build student {specification} for (") and "\n" not in said
    assert said.endswith(f"): use image_size={advised}, which it takes, or another architecture")
    mended = build_student(f"{specification.partition('?')[0]}?image_size={advised}", 6, seed=0)
    assert mended.preprocess.size == (advised, advised)


def test_checking_a_tower_leaves_running_statistics_as_they_start() -> None:
    cfg = {"image_size": 32, "timm_model_name": "test_resnet", "timm_pool": "", "timm_proj": "linear"}
    preprocess = Preprocess(size=(32, 32), mean=CLIP_MEAN, std=CLIP_STD)
    state = Student(TowerDescription("timm:test_resnet", 4, cfg, False, preprocess), seed=0).state_dict()
    seen = [value for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert seen and not any(value.item() for value in seen)


def test_everything_of_at_most_one_axis_and_every_table_is_spared_by_weight_decay() -> None:
    student = Student(PLAIN, seed=0)
    assert {name for name, value in student.named_parameters() if name not in student.no_weight_decay()} == {
        "tower.conv1.weight",
        "tower.proj",
        "tower.transformer.resblocks.0.attn.in_proj_weight",
        "tower.transformer.resblocks.0.attn.out_proj.weight",
        "tower.transformer.resblocks.0.mlp.c_fc.weight",
        "tower.transformer.resblocks.0.mlp.c_proj.weight",
    }


def test_what_a_backbone_declares_is_spared_too() -> None:
    student = Student(PLAIN, seed=0)
    student.tower.no_weight_decay = lambda: {"proj", "no.such.name"}
    spared = student.no_weight_decay()
    assert {"tower.proj", "tower.positional_embedding"} <= spared and "tower.conv1.weight" not in spared
