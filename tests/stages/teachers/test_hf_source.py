"""An hf teacher never runs with random, partly loaded, spoilt or foreign weights, nor with half-followed settings."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_schema.errors import DamagedError, MismatchError, PipelineError, RefusedError, UsageError
from stages.teachers import load_teacher
from tests.corpora.tiny_hf import make_tiny_hf

WEIGHTS, CONFIG, PREPROCESS = "model.safetensors", "config.json", "preprocessor_config.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hf(tmp_path_factory.mktemp("hf") / "clip")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "clip")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def assert_refused(folder: Path, message: str, error: type[PipelineError] = RefusedError) -> None:
    with pytest.raises(error, match=message):
        load_teacher(f"hf:{folder}")


@pytest.mark.parametrize(
    "name", ["text_projection.weight", "logit_scale", "vision_model.encoder.layers.1.mlp.fc1.weight"]
)
def test_a_missing_tensor_is_refused_and_named(name: str, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop(name))
    assert_refused(folder, rf"1 missing \({name}\).*part of the model would be random", MismatchError)


def test_a_checkpoint_of_one_tower_is_refused(folder: Path) -> None:
    change_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("text_")])
    assert_refused(folder, r"3\d missing \(.* and \d+ more\)", MismatchError)


def test_an_unexpected_tensor_is_refused_but_not_a_table_of_positions(folder: Path) -> None:
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    change_weights(folder, lambda tensors: tensors.update(positions))
    load_teacher(f"hf:{folder}")
    change_weights(folder, lambda tensors: tensors.update({"text_model.extra.weight": torch.zeros(1)}))
    assert_refused(folder, r"1 unexpected \(text_model\.extra\.weight\)", MismatchError)


def test_another_shape_is_refused(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"text_projection.weight": torch.zeros(8, 32)}))
    assert_refused(folder, r"1 of other shapes \(text_projection\.weight\)", MismatchError)


def test_a_positional_table_of_another_grid_is_refused_and_never_resized(folder: Path) -> None:
    change_json(folder / CONFIG, lambda config: config["vision_config"].update(image_size=64))
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    change_json(folder / PREPROCESS, lambda values: values.update(size))
    assert_refused(folder, r"of other shapes \(vision_model\.embeddings\.position_embedding", MismatchError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors["text_model.final_layer_norm.bias"].__setitem__(3, value))
    assert_refused(folder, r"is spoilt: 1 tensors with NaN or infinity \(text_model\.final_layer_norm\.bias\)")


def test_quantised_weights_are_refused(folder: Path) -> None:
    whole_numbers = {"text_projection.weight": torch.ones(16, 32, dtype=torch.int8)}
    change_weights(folder, lambda tensors: tensors.update(whole_numbers))
    assert_refused(folder, r"no floating point numbers \(text_projection\.weight I8\): quantised weights are not used")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(kept: float, folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(len(data) * kept)])
    assert_refused(folder, rf"{WEIGHTS} truncated or damaged")


def test_pickled_weights_are_not_read_and_the_way_out_is_named(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert_refused(folder, r"holds no model\.safetensors: .*random; pytorch_model\.bin is not read: load it once")


@pytest.mark.parametrize("name", ["../clip/model.safetensors", "/etc/passwd", "absent.safetensors", 7])
def test_an_index_that_names_what_is_no_file_beside_it_is_refused(name: object, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": name}}))
    assert_refused(folder, "which is no file beside it")


@pytest.mark.parametrize("name", [CONFIG, PREPROCESS])
def test_a_folder_without_one_of_its_files_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert_refused(folder, rf"{name} is missing: .*save_pretrained")


def test_a_folder_without_its_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert_refused(folder, "holds no tokenizer")


def test_a_tokenizer_with_more_words_than_the_text_tower_is_refused(folder: Path) -> None:
    larger = {"text_model.embeddings.token_embedding.weight": torch.zeros(100, 32)}
    change_weights(folder, lambda tensors: tensors.update(larger))
    change_json(folder / CONFIG, lambda config: config["text_config"].update(vocab_size=100, eos_token_id=99))
    assert_refused(folder, r"has a text tower of 100 tokens, its tokenizer knows 514")


@pytest.mark.parametrize("content", ["{", "[]", '"clip"'])
def test_a_configuration_that_is_no_object_is_refused(content: str, folder: Path) -> None:
    (folder / CONFIG).write_text(content)
    assert_refused(folder, CONFIG, DamagedError if content == "{" else RefusedError)


def test_another_family_is_refused_with_the_known_ones(folder: Path) -> None:
    change_json(folder / CONFIG, lambda config: config.update(model_type="clipseg"))
    assert_refused(
        folder, r"unknown model_type .*'clipseg' \(did you mean 'clip'\?\); known: align, .*siglip", UsageError
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config: only whole weights"),
        ({"vision_config": {"hidden_size": 33}}, "cannot build"),
        ({"projection_dim": "wide"}, "cannot build"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(change: dict, message: str, folder: Path) -> None:
    change_json(folder / CONFIG, lambda config: config.update(change))
    assert_refused(folder, message)


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert_refused(folder, "has a adapter_config: only whole weights are used; merge")


@pytest.mark.parametrize("scale", [80.0, float("-inf")])
def test_a_logit_scale_out_of_range_is_refused(scale: float, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update(logit_scale=torch.tensor(scale)))
    assert_refused(folder, "logit scale|is spoilt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize False"),
        ({"do_rescale": False}, "do_rescale False"),
        ({"resample": 4}, "resample 4"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "has size"),
        ({"size": {"longest_edge": 32}}, "has size"),
        ({"do_center_crop": False}, "do_center_crop False"),
        ({"crop_size": {"height": 40, "width": 40}}, "crop_size"),
        ({"crop_size": {"height": 24, "width": 24}}, r"pictures of \(24, 24\), the image tower .* takes \(32, 32\)"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"do_pad": True}, "do_pad True"),
        ({"crop_pct": 0.9}, "crop_pct 0.9"),
        ({"image_std": [0.5, 0.0, 0.5]}, "std above 0"),
    ],
    ids=str,
)
def test_preprocessing_that_cannot_be_followed_exactly_is_refused_by_field(
    change: dict, message: str, folder: Path
) -> None:
    change_json(folder / PREPROCESS, lambda values: values.update(change))
    assert_refused(folder, message)


def test_an_unknown_image_processor_is_refused_with_the_known_ones(folder: Path) -> None:
    change_json(folder / PREPROCESS, lambda values: values.update(image_processor_type="BlipImageProcessor"))
    assert_refused(folder, r"unknown image_processor_type .*'Blip'.*known: CLIP", UsageError)


@pytest.mark.parametrize(
    "change",
    [
        {"image_processor_type": "CLIPImageProcessorFast"},
        {"do_pad": None, "processor_class": "CLIPProcessor", "_valid_processor_keys": ["images"]},
        {"size": 32, "crop_size": 32},
    ],
    ids=str,
)
def test_preprocessing_that_is_spelt_otherwise_is_the_same(change: dict, made: Path, folder: Path) -> None:
    change_json(folder / PREPROCESS, lambda values: values.update(change))
    assert load_teacher(f"hf:{folder}").preprocess == load_teacher(f"hf:{made}").preprocess


def test_code_in_the_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name in ("modeling_own", "tokenization_own"):
        code = f"open({str(marker)!r}, 'w').close()\nclass OwnModel: ...\nclass OwnTokenizer: ...\n"
        (folder / f"{name}.py").write_text(code)
    own = {"AutoConfig": "modeling_own.OwnModel", "AutoModel": "modeling_own.OwnModel"}
    change_json(folder / CONFIG, lambda config: config.update(auto_map=own))
    own = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", "tokenization_own.OwnTokenizer"]}
    change_json(folder / "tokenizer_config.json", lambda config: config.update(auto_map=own))
    with contextlib.suppress(RefusedError):
        load_teacher(f"hf:{folder}")
    assert not marker.exists()


def as_transformers_5(folder: Path, **changes: object) -> Path:
    """Moves what is said of pictures to where `AutoProcessor.save_pretrained` of transformers 5 writes it."""
    said = json.loads((folder / PREPROCESS).read_text())
    whole = {"image_processor": {**said, **changes}, "processor_class": "CLIPProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(whole))
    return folder


def test_a_folder_of_transformers_5_prepares_pictures_as_one_of_before(made: Path, folder: Path) -> None:
    as_transformers_5(folder)
    (folder / PREPROCESS).unlink()
    teacher = load_teacher(f"hf:{folder}")
    assert teacher.preprocess == load_teacher(f"hf:{made}").preprocess
    assert str(folder / "processor_config.json") in {str(path) for path in teacher.files}


def test_two_files_that_prepare_pictures_otherwise_are_refused(made: Path, folder: Path) -> None:
    as_transformers_5(folder)
    assert load_teacher(f"hf:{folder}").preprocess == load_teacher(f"hf:{made}").preprocess
    as_transformers_5(folder, image_mean=[0.1, 0.2, 0.3])
    with pytest.raises(RefusedError, match=r"processor_config.json prepares pictures otherwise than prep"):
        load_teacher(f"hf:{folder}")
