"""An hf teacher gives the features of transformers itself, for every family, and needs nobody but its folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_schema.errors import EnvironmentProblem, UsageError
from cache_schema.features import unit_rows
from cache_schema.verify import verify_cache
from stages.evaluate.run import EvaluateConfig, evaluate_model
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.images.preprocess import normalise, prepare_pixels
from stages.teachers import Teacher, load_teacher, load_text_tower
from stages.teachers.hf_source import FAMILIES
from tests.corpora.extracts import extracted_cache
from tests.corpora.held_out import write_held_out
from tests.corpora.pictures import noise
from tests.corpora.small_corpus import picture, write_sources
from tests.corpora.tiny_hf import make_tiny_hf

TEXTS = ["a photo of a cat", "TWO  Dogs &amp; a bird", "東京の夜景", "snow", "a bus!", "word " * 100]
CONTEXT = {"clip": 77, "metaclip_2": 77, "siglip": 64, "align": 64, "chinese_clip": 52}
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hf(tmp_path_factory.mktemp("hf") / family, family)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_teacher(f"hf:{folder}")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hf(tmp_path_factory.mktemp("hf") / "clip")


def model_of(folder: Path) -> Any:
    import transformers

    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def test_features_are_those_of_transformers_bit_for_bit(family: str, folder: Path, teacher: Teacher) -> None:
    import transformers

    model, tokenizer = model_of(folder), transformers.AutoTokenizer.from_pretrained(folder)
    pixels = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=CONTEXT[family], return_tensors="pt")
    with torch.inference_mode():
        images = model.get_image_features(pixel_values=torch.from_numpy(pixels)).pooler_output.numpy()
        texts = model.get_text_features(**inputs).pooler_output.numpy()
    assert np.array_equal(teacher.encode_images(pixels), images)
    assert np.array_equal(teacher.encode_texts(TEXTS), texts)
    assert np.array_equal(teacher.token_ids(TEXTS), inputs["input_ids"].numpy())
    assert teacher.dim == images.shape[1]
    assert np.ptp(teacher.encode_texts(TEXTS), axis=0).min() > 0


def test_a_picture_goes_through_our_preprocessing_to_the_feature_of_transformers(
    folder: Path, teacher: Teacher
) -> None:
    import transformers

    pictures = [noise(90, 61), noise(61, 95, seed=1), noise(35, 200, seed=2), noise(32, 33, seed=3)]
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = torch.from_numpy(np.stack(processor(pictures)["pixel_values"]))
    with torch.inference_mode():
        expected = model_of(folder).get_image_features(pixel_values=pixels).pooler_output.numpy()
    prepared = np.stack([prepare_pixels(picture, teacher.preprocess) for picture in pictures])
    ours = teacher.encode_images(normalise(prepared, teacher.preprocess))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_scale_and_bias_are_those_that_turn_cosines_into_the_logits_of_transformers(
    folder: Path, teacher: Teacher
) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=teacher.context_length, return_tensors="pt"
    )
    pixels = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = model_of(folder)(pixel_values=torch.from_numpy(pixels), **inputs).logits_per_image.numpy()
    images, texts = teacher.encode_images(pixels), teacher.encode_texts(TEXTS)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    logits = teacher.logit_scale * images @ texts.T + (teacher.logit_bias or 0)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_sentence_is_cut_exactly_when_its_count_is_above_the_context_length(family: str, teacher: Teacher) -> None:
    assert teacher.context_length == CONTEXT[family]
    lengths = range(40, 90)
    texts = ["x" * length for length in lengths]
    counts = teacher.count_tokens(texts)
    assert counts == [length + 2 for length in lengths]
    rows = dict(zip(lengths, teacher.token_ids(texts), strict=True))
    whole = teacher.context_length - 2
    assert np.array_equal(rows[whole + 1], rows[whole + 2]) and not np.array_equal(rows[whole - 1], rows[whole])


def test_identity_is_equal_when_the_directory_moves_and_another_with_other_weights(
    family: str, folder: Path, teacher: Teacher, tmp_path: Path
) -> None:
    moved = load_teacher(f"hf:{shutil.copytree(folder, tmp_path / 'moved')}")
    assert moved.identity == teacher.identity and moved.tokenizer == teacher.tokenizer
    assert str(tmp_path) not in json.dumps([moved.identity, moved.tokenizer])
    other = load_teacher(f"hf:{make_tiny_hf(tmp_path / 'other', family, seed=1)}")
    assert other.identity != teacher.identity
    names = {Path(path).name for path in moved.files}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json"} <= names


def test_the_activation_is_found_in_the_built_model(clip: Path, tmp_path: Path) -> None:
    assert load_teacher(f"hf:{clip}").identity["activation"] == {
        side: ["QuickGELUActivation"] for side in ("image", "text")
    }
    other = make_tiny_hf(tmp_path / "gelu", hidden_act="gelu")
    assert load_teacher(f"hf:{other}").identity["activation"]["text"] == ["GELUActivation"]


def test_a_text_tower_is_the_same_teacher_without_an_image_side(folder: Path, teacher: Teacher) -> None:
    tower = load_text_tower(f"hf:{folder}")
    assert tower.identity == teacher.identity
    assert np.array_equal(tower.encode_texts(TEXTS), teacher.encode_texts(TEXTS))
    with pytest.raises(UsageError, match="loaded as a text tower"):
        tower.encode_images(np.zeros((1, 3, 32, 32), np.float32))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precisions_give_nearly_the_same_features_as_float32(
    precision: str, folder: Path, teacher: Teacher
) -> None:
    low = load_teacher(f"hf:{folder}", precision=precision)
    pixels = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    for ours, exact in (
        (low.encode_images(pixels), teacher.encode_images(pixels)),
        (low.encode_texts(TEXTS), teacher.encode_texts(TEXTS)),
    ):
        assert ours.dtype == np.float32 and not np.array_equal(ours, exact)
        cosines = np.sum(ours * exact, axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(exact, axis=1)
        assert cosines.min() > 0.99
    assert (low.logit_scale, low.logit_bias) == (teacher.logit_scale, teacher.logit_bias)


def test_weights_in_several_files_are_the_same_model(clip: Path, tmp_path: Path) -> None:
    split = shutil.copytree(clip, tmp_path / "split")
    (split / "model.safetensors").unlink()
    model_of(clip).save_pretrained(split, max_shard_size="100KB")
    assert len(list(split.glob("*.safetensors"))) > 1
    whole, parts = load_teacher(f"hf:{clip}"), load_teacher(f"hf:{split}")
    assert np.array_equal(parts.encode_texts(TEXTS), whole.encode_texts(TEXTS))
    assert len(parts.identity["files"]) == len(list(split.glob("*.safetensors")))


def test_siglip_two_lowers_the_case_where_its_tokenizer_keeps_it(tmp_path: Path) -> None:
    made = make_tiny_hf(tmp_path / "siglip", "siglip")
    config = json.loads((made / "tokenizer_config.json").read_text())
    (made / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    kept = load_teacher(f"hf:{made}")
    assert kept.tokenizer["cleaning"] == "lower"
    assert np.array_equal(kept.encode_texts(["A CAT"]), kept.encode_texts(["a cat"]))


LOCAL_ONLY = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(refuse)
from stages.teachers import load_teacher
print(load_teacher("hf:" + sys.argv[1]).encode_texts(["a cat"]).shape)
"""


def test_a_local_directory_is_read_without_asking_anybody(clip: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_ONLY, str(clip)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "(1, 16)", "")


@pytest.mark.parametrize("rest", ["", "nowhere", "./nowhere", "/no/where/at/all", "no where/at all"])
def test_what_is_neither_a_directory_nor_a_repository_is_a_usage_error(rest: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"hf:ORG/NAME@REVISION or hf:PATH"):
        load_teacher(f"hf:{rest}", base_folder=tmp_path)


@pytest.mark.parametrize("rest", ["nobody/nothing", "nobody/nothing@main"])
def test_a_repository_that_cannot_be_had_is_an_environment_problem(
    rest: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"cannot download nobody/nothing .*or copy the repository .*hf:PATH"):
        load_teacher(f"hf:{rest}", base_folder=tmp_path)


def test_without_transformers_one_line_says_what_to_install(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"needs transformers, which is not installed: pip install '\.\[hf\]'"):
        load_teacher(f"hf:{clip}")


def test_a_cache_is_extracted_with_an_hf_teacher_and_verifies(tmp_path: Path) -> None:
    teacher = f"hf:{make_tiny_hf(tmp_path / 'siglip', 'siglip')}"
    sources = write_sources(tmp_path, num_images=2, num_texts=2)
    cache = extracted_cache(tmp_path / "cache", *sources, teacher=teacher, part_rows=2)
    assert [cache.array(modality).num_ok for modality in cache.modalities] == [2, 2]
    assert verify_cache(cache.path) == []
    assert cache.array("image").recipe.logit_bias == -7.5
    loaded = load_teacher(teacher)
    pixels = np.stack([prepare_pixels(picture(number)[0], loaded.preprocess) for number in range(2)])
    ours = unit_rows(loaded.encode_images(normalise(pixels, loaded.preprocess)))
    stored = cache.array("image").features.gather_unit(np.arange(2))
    np.testing.assert_allclose(stored, ours, atol=1e-3)
    with open_job(ExtractConfig(cache=cache.path)) as job:
        assert job.tasks == []


def test_an_evaluation_asks_an_hf_teacher(clip: Path, tmp_path: Path) -> None:
    data = write_held_out(tmp_path / "data", numbers=range(100, 106))
    result = evaluate_model(EvaluateConfig(model=f"hf:{clip}", data=data, decode_workers=0))
    assert result["num_images"] == 6 and 0 <= result["zero_shot_top1"] <= 1
