"""Students of every kind: built from a name, deterministic, saved and loaded, described the open_clip way."""

import json

import numpy as np
import pytest
import torch

from cache_schema.errors import DamagedError, MismatchError, UnfinishedError, UsageError
from stages.students import STUDENTS, build_student, load_image_tower, save_image_tower

EXAMPLES = {
    "open_clip": "open_clip:ViT-S-32-alt?image_size=64",
    "timm": "timm:resnet10t?image_size=64&pretrained=false",
}
KINDS = pytest.mark.parametrize("kind", STUDENTS)


def _pixels(student, num_images=2, seed=0):
    shape = (num_images, 3, *student.preprocess.size)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@KINDS
def test_every_kind_maps_pictures_to_the_width_asked_for(kind):
    student = build_student(EXAMPLES[kind], 24, seed=0)
    assert student(_pixels(student)).shape == (2, 24)
    assert student.preprocess.size == (64, 64)


@KINDS
def test_random_start_depends_on_the_seed_alone(kind):
    torch.manual_seed(123)
    first = build_student(EXAMPLES[kind], 8, seed=5).state_dict()
    undisturbed = torch.rand(3)
    torch.manual_seed(123)
    torch.rand(0)
    assert torch.equal(undisturbed, torch.rand(3)), "building a student must not consume the caller's randomness"
    second = build_student(EXAMPLES[kind], 8, seed=5).state_dict()
    other = build_student(EXAMPLES[kind], 8, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@KINDS
def test_saved_tower_gives_the_same_features_from_its_folder_alone(kind, tmp_path):
    student = build_student(EXAMPLES[kind], 16, seed=1)
    student.train()
    student(_pixels(student, 8))  # moves the running statistics of batch norms
    save_image_tower(student, tmp_path, about={"from": "a test"})
    loaded = load_image_tower(tmp_path)
    pixels = _pixels(student, seed=3)
    with torch.no_grad():
        assert torch.equal(loaded(pixels), student.eval()(pixels))
    assert not loaded.training
    assert loaded.description.to_json() == student.description.to_json()


@KINDS
def test_vision_cfg_builds_the_same_tower_in_an_open_clip_model(kind):
    import open_clip

    student = build_student(EXAMPLES[kind], 16, seed=1)
    model = open_clip.model.CustomTextCLIP(
        embed_dim=16,
        vision_cfg=json.loads(json.dumps(student.vision_cfg)),
        text_cfg={"context_length": 8, "vocab_size": 10, "width": 16, "heads": 2, "layers": 1},
        quick_gelu=student.description.quick_gelu,
    )
    assert not any(model.visual.load_state_dict(student.tower.state_dict(), strict=True))
    pixels = _pixels(student)
    with torch.no_grad():
        assert torch.equal(model.eval().encode_image(pixels), student.eval()(pixels))


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "ghostnet_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_backbones_of_many_families_map_to_the_width_asked_for(backbone):
    size = "224" if backbone.startswith("vit") else "64"
    student = build_student(f"timm:{backbone}?image_size={size}", 24, seed=0)
    assert student(_pixels(student)).shape == (2, 24)


def test_biases_norms_and_positional_tables_are_exempt_from_weight_decay():
    vit = build_student("open_clip:ViT-S-32-alt?image_size=64", 16, seed=0)
    exempt = vit.no_weight_decay()
    assert {"tower.positional_embedding", "tower.class_embedding", "tower.ln_post.weight"} <= exempt
    assert "tower.transformer.resblocks.0.mlp.c_fc.bias" in exempt
    assert {"tower.conv1.weight", "tower.proj", "tower.transformer.resblocks.0.mlp.c_fc.weight"}.isdisjoint(exempt)
    timm_vit = build_student("timm:vit_tiny_patch16_224", 16, seed=0).no_weight_decay()
    assert {"tower.trunk.pos_embed", "tower.trunk.cls_token"} <= timm_vit


def test_open_clip_options_change_the_tower():
    assert build_student("open_clip:ViT-S-32-alt?image_size=64&quick_gelu=true", 8, seed=0).description.quick_gelu
    assert build_student("open_clip:ViT-S-32-alt?image_size=64", 8, seed=0, quick_gelu=True).description.quick_gelu
    assert not build_student("open_clip:ViT-S-32-alt?image_size=64", 8, seed=0).description.quick_gelu


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("ViT-B-32", "does not say its kind"),
        ("openclip:ViT-B-32", "unknown kind of student 'openclip'.*did you mean 'open_clip'"),
        ("open_clip:ViT-B-23", "unknown open_clip student 'ViT-B-23'.*did you mean 'ViT-B-32'"),
        ("open_clip:", "unknown open_clip student ''"),
        ("timm:resnet10tt", "unknown timm student 'resnet10tt'.*did you mean 'resnet10t'"),
        ("timm:resnet10t?imagesize=64", "unknown option.*did you mean 'image_size'"),
        ("timm:resnet10t?image_size=-3", "image_size='-3'.*whole number of pixels"),
        ("timm:resnet10t?drop=1", "from 0 to below 1"),
        ("timm:resnet10t?pretrained=yes", "there is no checkpoint file yes"),
        ("timm:resnet10t?drop=0.1&drop=0.2", "each option once"),
        ("timm:vit_tiny_patch16_224?image_size=64", "cannot build student"),
        ("timm:mobilenetv3_small_050?drop=0.1", "leave drop out"),
    ],
)
def test_what_cannot_be_built_is_a_usage_error_that_helps(specification, message):
    with pytest.raises(UsageError, match=message):
        build_student(specification, 8, seed=0)


def test_changed_weights_are_refused(tmp_path):
    save_image_tower(build_student(EXAMPLES["timm"], 8, seed=0), tmp_path, about={})
    weights = tmp_path / "image_tower.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DamagedError, match=r"image_tower\.safetensors is not the file that was saved"):
        load_image_tower(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    small, other = tmp_path / "small", tmp_path / "other"
    for folder, dim in ((small, 8), (other, 9)):
        folder.mkdir()
        save_image_tower(build_student(EXAMPLES["timm"], dim, seed=0), folder, about={})
    import hashlib

    from cache_schema.json_file import read_sealed, seal

    (small / "image_tower.safetensors").write_bytes((other / "image_tower.safetensors").read_bytes())
    value = read_sealed(small / "image_tower.json")
    value["weights_sha256"] = hashlib.sha256((small / "image_tower.safetensors").read_bytes()).hexdigest()
    (small / "image_tower.json").write_text(json.dumps(seal(value)))
    with pytest.raises(MismatchError, match="does not fit the architecture"):
        load_image_tower(small)


def test_a_folder_without_a_student_and_an_unfinished_run_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match="holds no trained student"):
        load_image_tower(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UnfinishedError, match="has not ended"):
        load_image_tower(tmp_path)
