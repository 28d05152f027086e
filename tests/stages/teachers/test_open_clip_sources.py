"""A teacher never runs with random, partly loaded, spoilt or foreign weights: each case is refused, and says why."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_schema.errors import DamagedError, EnvironmentProblem, MismatchError, RefusedError, UsageError
from stages.teachers import load_teacher
from tests.corpora.tiny_open_clip import make_tiny_open_clip, tiny_config, tiny_weights
from tests.corpora.traps import Trap

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_open_clip(tmp_path / "tiny")


def load_folder(folder: Path) -> None:
    load_teacher(f"open_clip:local-dir:{folder}")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize("rest", ["ViT-B-32", "ViT-B-32/", "RN50/"])
def test_an_empty_tag_is_refused_because_weights_would_be_random(rest: str) -> None:
    with pytest.raises(UsageError, match=r"names no weights, so they would be random.*tags of .*openai"):
        load_teacher(f"open_clip:{rest}")


def test_a_misspelt_tag_names_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"tag of open_clip model ViT-B-32 'opanai' \(did you mean 'openai'\?\)"):
        load_teacher("open_clip:ViT-B-32/opanai")


@pytest.mark.parametrize("rest", ["ViT-B-33/openai", "ViT-B-33@weights.safetensors"])
def test_an_unknown_architecture_names_the_nearest_one(rest: str) -> None:
    with pytest.raises(UsageError, match=r"unknown open_clip model 'ViT-B-33' \(did you mean 'ViT-B-32'\?\)"):
        load_teacher(f"open_clip:{rest}")


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", "unknown open_clip model ''"),
        ("local-dir:", "names no directory"),
        ("local-dir:nowhere", "there is no directory .*nowhere"),
        ("hf-hub:someone/model", "not supported: download it and use open_clip:local-dir:PATH"),
        ("ViT-B-32@", "names no file"),
        ("ViT-B-32@nowhere.pt", "there is no checkpoint file .*nowhere.pt"),
    ],
)
def test_what_is_not_there_is_a_usage_error(rest: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_teacher(f"open_clip:{rest}", base_folder=tmp_path)


def test_an_unknown_tag_after_like_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"tag of open_clip model ViT-B-32 'opanai'"):
        load_teacher(f"open_clip:ViT-B-32@{folder / WEIGHTS}?like=opanai")


def test_published_weights_that_cannot_be_had_are_an_environment_problem(
    publish: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    publish("tiny-clip", "far", hf_hub="nobody/nothing/")
    with pytest.raises(EnvironmentProblem, match=r"cannot download the weights 'far' of tiny-clip.*\?like=far"):
        load_teacher("open_clip:tiny-clip/far")


def test_a_directory_without_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(RefusedError, match=r"holds no weights: the model would be random"):
        load_folder(folder)


def test_a_directory_with_several_possible_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "epoch_1.safetensors")
    (folder / "epoch_2.safetensors").write_bytes(b"")
    with pytest.raises(RefusedError, match=r"several files that could be weights \(epoch_1.*epoch_2.*a guess"):
        load_folder(folder)


def test_a_directory_without_configuration_is_refused(folder: Path) -> None:
    (folder / CONFIG).unlink()
    with pytest.raises(RefusedError, match=rf"{CONFIG} is missing"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("model_cfg"), "has no model_cfg with embed_dim, vision_cfg, text_cfg"),
        (lambda config: config["model_cfg"].update(vision_cfg=[]), "has no model_cfg with"),
        (lambda config: config["model_cfg"].update(no_such_option=1), "cannot build the architecture"),
        (lambda config: config["model_cfg"]["vision_cfg"].update(patch_size=0), "cannot build the architecture"),
        (lambda config: config.update(preprocess_cfg=[]), "preprocess_cfg that is no object"),
        (lambda config: config["preprocess_cfg"].update(maen=[0, 0, 0]), r"'maen'.*did you mean 'mean'"),
        (lambda config: config["preprocess_cfg"].update(mean=[0.5]), "preprocess"),
        (
            lambda config: config["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"reduction_mask": "random"}),
            "drops tokens at random",
        ),
        (
            lambda config: config["model_cfg"]["text_cfg"].update(vocab_size=100),
            "other shapes or dtypes .*token_embedding.weight",
        ),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, folder: Path
) -> None:
    change_config(folder, change)
    with pytest.raises(RefusedError, match=message):
        load_folder(folder)


def test_a_configuration_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / CONFIG).write_text('{"model_cfg": {')
    with pytest.raises(DamagedError, match=CONFIG):
        load_folder(folder)


def test_a_missing_key_is_refused_and_named(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("visual.proj"))
    with pytest.raises(MismatchError, match=r"1 missing \(visual\.proj\), 0 unexpected: .*random weights"):
        load_folder(folder)


def test_unexpected_keys_are_refused_and_the_first_ten_listed(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({f"extra.{n:02}": torch.zeros(1) for n in range(12)}))
    with pytest.raises(MismatchError, match=r"12 unexpected \(extra\.00, .*extra\.09 and 2 more\)"):
        load_folder(folder)


@pytest.mark.parametrize(
    "other", [torch.zeros(16, 32), torch.zeros(32, 16, dtype=torch.int64), torch.zeros(32 * 16)], ids=str
)
def test_another_shape_or_kind_of_dtype_is_refused(other: torch.Tensor, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"text_projection": other}))
    with pytest.raises(MismatchError, match=r"1 other shapes or dtypes \(text_projection .* for \(32, 16\)"):
        load_folder(folder)


def test_a_positional_table_of_another_grid_is_refused_and_never_resized(folder: Path) -> None:
    change_config(folder, lambda config: config["model_cfg"]["vision_cfg"].update(image_size=64))
    with pytest.raises(MismatchError, match=r"visual\.positional_embedding"):
        load_folder(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float, folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["ln_final.bias"][3] = value

    change_weights(folder, spoil)
    with pytest.raises(RefusedError, match=r"is spoilt: 1 tensors with NaN or infinity \(ln_final\.bias\)"):
        load_folder(folder)


def test_a_logit_scale_out_of_range_is_refused(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update(logit_scale=torch.tensor(80.0)))
    with pytest.raises(RefusedError, match="logit scale"):
        load_folder(folder)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_refused(kept: float, folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(RefusedError, match=rf"{WEIGHTS} is truncated or damaged"):
        load_folder(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    torch.save(tiny_weights(tiny_config()), path)
    return path


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_torch_file_is_refused(kept: float, checkpoint: Path, tiny_architectures: None) -> None:
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(RefusedError, match=r"checkpoint\.pt cannot be read as tensors only"):
        load_teacher(f"open_clip:tiny-clip@{checkpoint}")


@pytest.mark.parametrize("new_format", [True, False])
def test_a_damaged_torch_file_is_refused_or_read_and_nothing_else(new_format: bool, tmp_path: Path) -> None:
    from stages.teachers.checkpoint_weights import read_tensors

    path = tmp_path / "weights.pt"
    content = {"a": torch.arange(6.0).reshape(2, 3), "logit_scale": torch.tensor(1.0)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    data, num_refused = path.read_bytes(), 0
    for position in range(0, len(data), max(1, len(data) // 150)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x11]) + data[position + 1 :])
        try:
            read_tensors(path)
        except RefusedError:
            num_refused += 1
    assert num_refused > 20


@pytest.mark.parametrize("new_format", [True, False])
def test_a_checkpoint_with_pickled_objects_is_refused_and_nothing_in_it_is_run(
    new_format: bool, tmp_path: Path, tiny_architectures: None
) -> None:
    path, marker = tmp_path / "trap.pt", tmp_path / "marker"
    content = {"state_dict": tiny_weights(tiny_config()), "args": Trap(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(RefusedError, match=r"holds pickled objects, which are never run; save .* as \.safetensors"):
        load_teacher(f"open_clip:tiny-clip@{path}")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [{}, [torch.zeros(1)], {"a": torch.zeros(1), "b": "text"}, {"a": torch.eye(2).to_sparse()}],
    ids=["empty", "a list", "text", "sparse"],
)
def test_a_torch_file_that_holds_no_state_dict_is_refused(
    content: Any, tmp_path: Path, tiny_architectures: None
) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(RefusedError, match="state dict"):
        load_teacher(f"open_clip:tiny-clip@{path}")


def test_a_file_of_another_suffix_is_not_opened(tmp_path: Path, tiny_architectures: None) -> None:
    (tmp_path / "weights.npz").write_bytes(b"anything")
    with pytest.raises(UsageError, match=r"suffix '\.npz' is none of \.safetensors, \.bin, \.pt, \.pth"):
        load_teacher(f"open_clip:tiny-clip@{tmp_path / 'weights.npz'}")


@pytest.mark.parametrize(("name", "made_with"), [("tiny-clip", True), ("tiny-clip-quickgelu", False)])
def test_another_activation_than_the_configuration_beside_the_weights_is_refused(
    name: str, made_with: bool, tmp_path: Path, tiny_architectures: None
) -> None:
    folder = make_tiny_open_clip(tmp_path / "made", quick_gelu=made_with)
    with pytest.raises(MismatchError, match=rf"was made for {'QuickGELU' if made_with else 'GELU'} \(.*{CONFIG}"):
        load_teacher(f"open_clip:{name}@{folder / WEIGHTS}")


@pytest.mark.parametrize("file_name", ["ViT-B-32-quickgelu.safetensors", "vit_openai.safetensors"])
def test_a_file_name_that_tells_quickgelu_is_refused_for_a_plain_architecture(
    file_name: str, tmp_path: Path, tiny_architectures: None
) -> None:
    save_file(tiny_weights(tiny_config()), tmp_path / file_name)
    with pytest.raises(MismatchError, match=r"was made for QuickGELU .*use the -quickgelu architecture"):
        load_teacher(f"open_clip:tiny-clip@{tmp_path / file_name}")
    load_teacher(f"open_clip:tiny-clip-quickgelu@{tmp_path / file_name}")


def test_a_published_file_in_a_directory_with_another_activation_is_recognised_by_its_hash(
    tmp_path: Path, publish: Callable[..., None]
) -> None:
    folder = make_tiny_open_clip(tmp_path / "copied", quick_gelu=False)
    sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    publish("tiny-clip", "known", url=f"https://models.invalid/{sha256}/tiny.pt", quick_gelu=True)
    with pytest.raises(MismatchError, match=r"was made for QuickGELU \(it is the published https://models\.invalid"):
        load_folder(folder)


def test_a_tag_of_another_activation_than_its_architecture_is_refused(
    tmp_path: Path, publish: Callable[..., None]
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tiny_weights(tiny_config()), path)
    publish("tiny-clip-quickgelu", "plain", file=str(path), quick_gelu=False)
    with pytest.raises(MismatchError, match="was built with QuickGELU, its checkpoint was made for GELU"):
        load_teacher("open_clip:tiny-clip-quickgelu/plain")


def test_a_file_whose_preprocessing_nobody_tells_needs_a_tag_to_follow(
    tmp_path: Path, publish: Callable[..., None]
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tiny_weights(tiny_config()), path)
    publish("tiny-clip", "one", mean=(0.5,) * 3, quick_gelu=False)
    publish("tiny-clip", "two", mean=(0.4,) * 3, quick_gelu=False)
    with pytest.raises(MismatchError, match=r"different preprocessing.*add \?like=TAG, one of one, two"):
        load_teacher(f"open_clip:tiny-clip@{path}")
    assert load_teacher(f"open_clip:tiny-clip@{path}?like=two").preprocess.mean == (0.4,) * 3
