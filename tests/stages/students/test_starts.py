"""A student begins with the weights that it was told, as stock open_clip and timm load them."""

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip import factory
from safetensors.torch import save_file

from cache_schema.errors import MismatchError, RefusedError, UsageError
from stages.students import build_student, save_image_tower
from stages.students.starts import Start, start_of_student
from tests.corpora.tiny_open_clip import save_local_dir, tiny_config, tiny_weights

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
NAME = "tiny-start"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A local open_clip directory with means of its own, whose architecture has a name."""
    folder = tmp_path_factory.mktemp("tiny")
    config = tiny_config(quick_gelu=False)
    config["preprocess_cfg"] |= {"mean": list(MEAN), "std": list(STD), "interpolation": "bilinear"}
    save_local_dir(folder / "dir", config, tiny_weights(config))
    (folder / f"{NAME}.json").write_text(json.dumps(config["model_cfg"]))
    open_clip.add_model_config(folder / f"{NAME}.json")
    yield folder / "dir"
    factory._MODEL_CONFIG_PATHS.remove(folder / f"{NAME}.json")
    del factory._MODEL_CONFIGS[NAME]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A checkpoint of a timm backbone with its classifier, and the model itself."""
    torch.manual_seed(3)
    model = timm.create_model("resnet10t").eval()
    path = tmp_path_factory.mktemp("timm") / "resnet10t.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path, model


def pixels(size: int) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("how", ["directory", "file", "init"])
def test_an_open_clip_student_has_the_features_of_stock_open_clip_and_its_mean_and_std(tiny: Path, how: str) -> None:
    weights = {"directory": tiny, "file": tiny / "open_clip_model.safetensors", "init": None}[how]
    specification = f"open_clip:{NAME}" if weights is None else f"open_clip:{NAME}?pretrained={weights}"
    student = build_student(specification, 16, seed=5, init=tiny if how == "init" else None).eval()
    stock = open_clip.create_model(f"local-dir:{tiny}").eval()
    with torch.no_grad():
        assert torch.allclose(student(pixels(32)), stock.encode_image(pixels(32)), atol=1e-5)
    assert (student.preprocess.mean, student.preprocess.std) == (MEAN, STD)
    assert student.preprocess.interpolation == "bilinear"
    assert student.started_from is not None and len(student.started_from) == 64


def test_a_projection_to_another_width_starts_anew_and_all_else_is_taken(tiny: Path) -> None:
    said: list[str] = []
    wide = build_student(f"open_clip:{NAME}", 24, seed=5, init=tiny, notice=said.append)
    random = build_student(f"open_clip:{NAME}", 24, seed=5)
    same = build_student(f"open_clip:{NAME}", 16, seed=5, init=tiny)
    ours, theirs, plain = (one.tower.state_dict() for one in (wide, same, random))
    assert torch.equal(ours["proj"], plain["proj"]) and ours["proj"].shape[1] == 24
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "proj")
    assert not torch.equal(ours["conv1.weight"], plain["conv1.weight"])
    assert said[0].endswith("; proj start anew") and f"mean {MEAN}" in said[0]


def test_another_activation_than_that_of_the_weights_is_refused_with_both(tiny: Path) -> None:
    with pytest.raises(MismatchError, match=r"was made for GELU, student .* has QuickGELU"):
        build_student(f"open_clip:{NAME}", 16, seed=0, quick_gelu=True, init=tiny)
    # As advised.
    build_student(f"open_clip:{NAME}?quick_gelu=false", 16, seed=0, quick_gelu=True, init=tiny)


def test_a_table_of_another_size_is_refused(tiny: Path) -> None:
    with pytest.raises(MismatchError, match=r"positional_embedding is \(17, 32\) there, \(65, 32\) here.*image_size"):
        build_student(f"open_clip:{NAME}?image_size=64", 16, seed=0, init=tiny)


def test_a_timm_backbone_has_the_features_of_stock_timm_and_the_mean_and_std_that_timm_knows(
    backbone: tuple[Path, torch.nn.Module],
) -> None:
    path, model = backbone
    said: list[str] = []
    student = build_student(f"timm:resnet10t?image_size=64&pretrained={path}", 12, seed=0, notice=said.append).eval()
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(pixels(64)), pre_logits=True)
        assert torch.allclose(student.tower.trunk(pixels(64)), pooled, atol=1e-5)
    published = timm.get_pretrained_cfg("resnet10t")
    assert published is not None
    assert (student.preprocess.mean, student.preprocess.std) == (published.mean, published.std)
    assert "head.proj.weight start anew" in said[0]


def test_another_student_is_begun_with_even_at_another_width_and_brings_what_it_had(tmp_path: Path) -> None:
    first = build_student("timm:test_vit?image_size=32", 8, seed=1)
    start = start_of_student("first", first, "ab" * 32)
    second = build_student("timm:test_vit?image_size=32", 20, seed=2, init=start)
    assert second.started_from == "ab" * 32
    ours, theirs = second.tower.state_dict(), first.tower.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("head.proj"))
    (tmp_path / "first").mkdir()
    save_image_tower(first, tmp_path / "first", about={})
    assert isinstance(start, Start) and start.specification == first.specification


@pytest.mark.parametrize(
    ("specification", "said"),
    [
        ("timm:resnet14t?image_size=64&pretrained={path}", "does not fit student .* is missing"),
        ("timm:resnet10t?image_size=64&pretrained=/nowhere.safetensors", "there is no checkpoint file"),
        ("open_clip:ViT-B-32?pretrained={path}", "no tensor called visual"),
        ("open_clip:ViT-B-32?pretrained=opnai", "unknown tag of open_clip model ViT-B-32 'opnai'.*did you mean"),
    ],
)
def test_weights_that_are_not_there_or_of_another_model_are_refused(
    backbone: tuple[Path, torch.nn.Module], specification: str, said: str
) -> None:
    with pytest.raises((UsageError, MismatchError), match=said):
        build_student(specification.format(path=backbone[0]), 12, seed=0)


def test_a_checkpoint_that_holds_objects_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": print}}, tmp_path / "evil.pt")
    with pytest.raises(RefusedError, match="holds pickled objects, which are never run"):
        build_student(f"timm:resnet10t?pretrained={tmp_path / 'evil.pt'}", 12, seed=0)
