"""An open_clip teacher gives open_clip's own features, whichever of the three forms names it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_schema.errors import UsageError
from stages.images.preprocess import normalise, prepare_pixels
from stages.teachers import Teacher, load_teacher, load_text_tower
from tests.corpora.pictures import noise
from tests.corpora.tiny_open_clip import make_tiny_open_clip, save_local_dir, tiny_config, tiny_weights

TEXTS = ["a photo of a cat", "TWO  Dogs &amp; a bird", "東京の夜景", "snow", "<start_of_text> a bus", "word " * 100]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_open_clip(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_teacher(f"open_clip:local-dir:{folder}")


def features_by_open_clip(name: str, pixels: np.ndarray, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns open_clip's own features of `pixels` and of `TEXTS`."""
    model, _ = open_clip.create_model_from_pretrained(name, **how)
    model.eval()
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(name)(TEXTS)
        return model.encode_image(torch.from_numpy(pixels)).numpy(), model.encode_text(tokens).numpy()


def some_pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 3, 32, 32)).astype(np.float32)


def assert_same_features(teacher: Teacher, expected: tuple[np.ndarray, np.ndarray], pixels: np.ndarray) -> None:
    assert np.array_equal(teacher.encode_images(pixels), expected[0])
    assert np.array_equal(teacher.encode_texts(TEXTS), expected[1])


def test_a_local_directory_gives_the_features_of_open_clip(folder: Path, teacher: Teacher) -> None:
    pixels = some_pixels()
    assert_same_features(teacher, features_by_open_clip(f"local-dir:{folder}", pixels), pixels)


def test_a_picture_goes_through_our_preprocessing_to_the_feature_of_open_clip(folder: Path, teacher: Teacher) -> None:
    picture = noise(90, 61)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    with torch.inference_mode():
        expected = model.encode_image(transform(picture)[None]).numpy()
    ours = teacher.encode_images(normalise(prepare_pixels(picture, teacher.preprocess)[None], teacher.preprocess))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ["tiny-clip", "tiny-clip-quickgelu"])
def test_a_checkpoint_file_gives_the_features_of_open_clip(
    name: str, suffix: str, tmp_path: Path, tiny_architectures: None
) -> None:
    tensors, path = tiny_weights(tiny_config(), seed=3), tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        # As open_clip's training writes it, from a wrapped model.
        wrapped = {f"module.{key}": value for key, value in tensors.items()}
        torch.save({"epoch": 3, "name": "a run", "state_dict": wrapped}, path)
    else:
        save_file(tensors, path)
    loaded, pixels = load_teacher(f"open_clip:{name}@{path}"), some_pixels()
    assert_same_features(loaded, features_by_open_clip(name, pixels, pretrained=str(path)), pixels)
    wanted = "QuickGELU" if name.endswith("quickgelu") else "GELU"
    assert loaded.identity["activation"] == {"image": [wanted], "text": [wanted]}


def test_a_published_tag_gives_the_features_of_open_clip_with_the_values_of_the_tag(
    tmp_path: Path, publish: Callable[..., None]
) -> None:
    path = tmp_path / "published.safetensors"
    save_file(tiny_weights(tiny_config(), seed=4), path)
    values = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear", "resize_mode": "squash"}
    publish("tiny-clip", "good", file=str(path), quick_gelu=True, **values)
    loaded, pixels = load_teacher("open_clip:tiny-clip/good"), some_pixels()
    expected = features_by_open_clip("tiny-clip", pixels, pretrained="good", force_quick_gelu=True)
    assert_same_features(loaded, expected, pixels)
    found = loaded.preprocess
    assert (found.mean, found.std) == (values["mean"], values["std"])
    assert (found.interpolation, found.resize_mode) == ("bilinear", "squash")
    from_file = load_teacher(f"open_clip:tiny-clip@{path}?like=good")
    assert from_file.identity == loaded.identity
    assert from_file.preprocess == loaded.preprocess


def test_a_custom_text_model_with_a_bias_gives_the_features_of_open_clip(tmp_path: Path) -> None:
    config = tiny_config(custom_text=True, init_logit_bias=-10.0, quick_gelu=False)
    tensors = tiny_weights(config, seed=5)
    tensors |= {"logit_scale": torch.tensor(4.0), "logit_bias": torch.tensor(-7.5)}
    path, pixels = save_local_dir(tmp_path / "siglip", config, tensors), some_pixels()
    loaded = load_teacher(f"open_clip:local-dir:{path}")
    assert_same_features(loaded, features_by_open_clip(f"local-dir:{path}", pixels), pixels)
    assert loaded.logit_scale == pytest.approx(np.exp(4.0))
    assert loaded.logit_bias == -7.5


def test_preprocess_logit_scale_and_context_length_are_read_from_the_model(tmp_path: Path) -> None:
    config = tiny_config()
    config["preprocess_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    config["preprocess_cfg"] |= {"resize_mode": "longest", "fill_color": 7}
    config["model_cfg"]["text_cfg"]["context_length"] = 24
    tensors = tiny_weights(config) | {"logit_scale": torch.tensor(2.5)}
    loaded = load_teacher(f"open_clip:local-dir:{save_local_dir(tmp_path / 'other', config, tensors)}")
    expected = {key: value for key, value in config["preprocess_cfg"].items() if key != "mode"}
    assert loaded.preprocess.to_json() == expected | {"size": [32, 32]}
    assert loaded.logit_scale == pytest.approx(np.exp(2.5))
    assert loaded.logit_bias is None
    assert loaded.context_length == 24
    assert loaded.token_ids(["word " * 100]).shape == (1, 24)


def test_a_sentence_is_cut_exactly_when_its_count_is_above_the_context_length(teacher: Teacher) -> None:
    texts = ["x " * length for length in (1, 74, 75, 76, 200)]
    assert teacher.count_tokens(texts) == [3, 76, 77, 78, 202]
    rows = teacher.token_ids(texts)
    assert rows is not None
    assert np.array_equal(rows[3], rows[2])
    assert not np.array_equal(rows[2], rows[1])


def test_identity_is_equal_when_the_directory_moves_and_holds_no_path(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    here, there = load_teacher(f"open_clip:local-dir:{folder}"), load_teacher(f"open_clip:local-dir:{moved}")
    assert here.identity == there.identity
    assert here.tokenizer == there.tokenizer
    assert str(tmp_path) not in json.dumps(there.identity)
    assert str(moved) in there.specification


def test_a_relative_path_is_looked_up_in_the_base_folder_and_becomes_absolute(folder: Path) -> None:
    loaded = load_teacher(f"open_clip:local-dir:{folder.name}", base_folder=folder.parent)
    assert loaded.specification == f"open_clip:local-dir:{folder}"


@pytest.mark.parametrize("what", ["weights", "vision_cfg", "quick_gelu"])
def test_other_weights_or_another_architecture_give_another_identity(
    what: str, folder: Path, teacher: Teacher, tmp_path: Path
) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    tensors = load_file(folder / "open_clip_model.safetensors")
    if what == "weights":
        tensors["visual.ln_post.bias"][0] += 1e-6
    elif what == "vision_cfg":
        config["model_cfg"]["vision_cfg"]["head_width"] = 8
    else:
        config["model_cfg"]["quick_gelu"] = False
    other = load_teacher(f"open_clip:local-dir:{save_local_dir(tmp_path / 'other', config, tensors)}")
    assert other.identity != teacher.identity


def test_a_configuration_beside_a_checkpoint_file_is_among_the_files_that_decide(
    tmp_path: Path, tiny_architectures: None
) -> None:
    made = make_tiny_open_clip(tmp_path / "tiny", quick_gelu=False)
    loaded = load_teacher(f"open_clip:tiny-clip@{made / 'open_clip_model.safetensors'}")
    assert {Path(path).name for path in loaded.files} == {"open_clip_config.json", "open_clip_model.safetensors"}


def test_a_text_tower_has_no_image_side(folder: Path) -> None:
    tower = load_text_tower(f"open_clip:local-dir:{folder}")
    with pytest.raises(UsageError, match="loaded as a text tower"):
        tower.encode_images(some_pixels())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precisions_give_nearly_the_same_features_as_float32(
    precision: str, folder: Path, teacher: Teacher
) -> None:
    low, pixels = load_teacher(f"open_clip:local-dir:{folder}", precision=precision), some_pixels()
    pairs = ((low.encode_images(pixels), teacher.encode_images(pixels)),)
    pairs += ((low.encode_texts(TEXTS), teacher.encode_texts(TEXTS)),)
    for ours, exact in pairs:
        assert ours.dtype == np.float32
        assert not np.array_equal(ours, exact)
        cosines = np.sum(ours * exact, axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(exact, axis=1)
        assert cosines.min() > 0.99
    assert low.logit_scale == teacher.logit_scale
