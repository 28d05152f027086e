"""Folders and repositories of transformers 4 and 5 make the teacher that stock transformers makes of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_schema.errors import RefusedError
from stages.images.preprocess import normalise, prepare_pixels
from stages.teachers import Teacher, load_teacher
from stages.teachers.hf_source import FAMILIES
from tests.corpora.hub import COMMIT, hub_of
from tests.corpora.pictures import noise
from tests.corpora.tiny_hf import make_tiny_hf

TEXTS = ["a photo of a cat", "two dogs &amp; a bird", "東京の夜景", "snow", "a bus!", "word " * 100, ""]
PICTURES = [noise(90, 61), noise(61, 95, seed=1), noise(35, 200, seed=2), noise(32, 33, seed=3)]
PREPROCESS, PROCESSOR, TOKENIZER = "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def four(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hf(tmp_path_factory.mktemp("four") / family, family)


@pytest.fixture(scope="module")
def five(four: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as transformers 5 saves it."""
    import transformers

    folder = tmp_path_factory.mktemp("five") / four.name
    transformers.AutoModel.from_pretrained(four).save_pretrained(folder)
    transformers.AutoProcessor.from_pretrained(four).save_pretrained(folder)
    assert (folder / PROCESSOR).exists() and not (folder / PREPROCESS).exists()
    return folder


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    change(value)
    path.write_text(json.dumps(value))


def assert_as_transformers_has_it(folder: Path) -> Teacher:
    """Returns the teacher in `folder`, its pixels and tokens compared with those of the stock processor."""
    import transformers

    teacher = load_teacher(f"hf:{folder}")
    stock = transformers.AutoProcessor.from_pretrained(folder)
    # Of the two kinds of processors, the one that computes with Pillow.
    of_images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    prepared = np.stack([prepare_pixels(picture, teacher.preprocess) for picture in PICTURES])
    expected = np.stack(of_images(PICTURES)["pixel_values"])
    np.testing.assert_allclose(normalise(prepared, teacher.preprocess), expected, atol=1e-5)
    ids = stock.tokenizer(TEXTS, padding="max_length", truncation=True, max_length=teacher.context_length)["input_ids"]
    assert np.array_equal(teacher.token_ids(TEXTS), ids)
    assert len(np.unique(teacher.token_ids(TEXTS), axis=0)) == len(TEXTS)
    return teacher


def test_both_layouts_of_every_family_are_read_as_transformers_reads_them(four: Path, five: Path) -> None:
    of_four, of_five = (assert_as_transformers_has_it(folder) for folder in (four, five))
    assert of_five.preprocess == of_four.preprocess
    assert np.array_equal(of_five.token_ids(TEXTS), of_four.token_ids(TEXTS))
    assert np.array_equal(of_five.encode_texts(TEXTS), of_four.encode_texts(TEXTS))


def _of_pictures(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda whole: change(whole["image_processor"])


SPELT_OTHERWISE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a video processor beside": lambda whole: whole.update(video_processor={"image_mean": [0, 0, 0]}),
    "no type": _of_pictures(lambda said: said.pop("image_processor_type")),
    "a fast one of transformers 4": _of_pictures(
        lambda said: said.update(
            image_processor_type=said["image_processor_type"] + "Fast",
            data_format="channels_first",
            **dict.fromkeys(("device", "do_pad", "pad_size", "return_tensors", "disable_grouping")),
        )
    ),
}


@pytest.mark.parametrize("change", SPELT_OTHERWISE)
def test_a_processor_that_is_spelt_otherwise_is_the_same(change: str, five: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(five, tmp_path / "folder")
    change_json(folder / PROCESSOR, SPELT_OTHERWISE[change])
    assert assert_as_transformers_has_it(folder).preprocess == load_teacher(f"hf:{five}").preprocess


@pytest.mark.parametrize("said", [{}, {"image_processor": None}], ids=["nothing", "null"])
def test_a_processor_that_says_nothing_of_pictures_leaves_them_to_the_older_file(
    said: dict, four: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(four, tmp_path / "folder")
    change_json(folder / PROCESSOR, lambda whole: whole.update(said))
    assert assert_as_transformers_has_it(folder).preprocess == load_teacher(f"hf:{four}").preprocess


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hf(tmp_path_factory.mktemp("hf") / "clip")


def test_a_processor_that_is_no_object_or_speaks_of_sound_is_refused(clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip, tmp_path / "folder")
    said = json.loads((folder / PREPROCESS).read_text())
    (folder / PREPROCESS).unlink()
    change_json(folder / PROCESSOR, lambda whole: whole.update(image_processor="CLIPImageProcessor"))
    with pytest.raises(RefusedError, match=r"processor_config.json has image_processor 'CLIP.*no JSON object"):
        load_teacher(f"hf:{folder}")
    (folder / PROCESSOR).write_text(json.dumps({"feature_extractor": said}))
    with pytest.raises(RefusedError, match=r"missing: .* or a processor_config.json with an image_processor"):
        load_teacher(f"hf:{folder}")


def _vocabulary_and_merges(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def _vocabulary_of_lines(folder: Path) -> None:
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(words, key=words.__getitem__)))


def _published(folder: Path) -> None:
    """Writes what transformers 4 wrote of a CLIP tokenizer."""
    _vocabulary_and_merges(folder)
    end = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False}
    start = {**end, "content": "<|startoftext|>"}
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "<|endoftext|>"}
    about = {"errors": "replace", "add_prefix_space": False, "do_lower_case": True, "name_or_path": "openai/clip"}
    tokenizer = {
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
        "special_tokens_map_file": "./s.json",
    }
    (folder / TOKENIZER).write_text(json.dumps({**special, **about, **tokenizer}))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


TOKENIZERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "tokenizer.json alone": ("clip", lambda folder: (folder / TOKENIZER).unlink()),
    "vocabulary and merges": ("clip", _vocabulary_and_merges),
    "as transformers 4 wrote it": ("clip", _published),
    "the fast class": (
        "clip",
        lambda folder: change_json(folder / TOKENIZER, lambda said: said.update(tokenizer_class="CLIPTokenizerFast")),
    ),
    "padding of its own": ("clip", lambda folder: change_json(folder / TOKENIZER, lambda s: s.update(pad_token="!"))),
    "vocabulary of lines": ("align", _vocabulary_of_lines),
    "vocabulary of lines, Chinese CLIP": ("chinese_clip", _vocabulary_of_lines),
    "sentencepiece alone": ("siglip", lambda folder: (folder / TOKENIZER).unlink()),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_in_other_files_are_read_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    family, change = TOKENIZERS[name]
    folder = make_tiny_hf(tmp_path / "folder", family)
    before = load_teacher(f"hf:{folder}").token_ids(TEXTS)
    change(folder)
    after = assert_as_transformers_has_it(folder).token_ids(TEXTS)
    assert before is not None and (np.array_equal(before, after) or name == "padding of its own")


@pytest.mark.parametrize(
    ("family", "tokenizer"),
    [("clip", "CLIPTokenizer"), ("metaclip_2", "XLMRobertaTokenizer"), ("siglip", "GemmaTokenizer"), ("align", "")],
)
def test_a_tokenizer_without_its_vocabulary_is_refused(family: str, tokenizer: str, tmp_path: Path) -> None:
    folder = make_tiny_hf(tmp_path / "folder", family)
    for name in ("tokenizer.json", "spiece.model"):
        (folder / name).unlink(missing_ok=True)
    if tokenizer:
        (folder / TOKENIZER).write_text(json.dumps({"tokenizer_class": tokenizer, "model_max_length": 64}))
    with pytest.raises(RefusedError, match=r"knows \d special tokens and no word: .* beside tokenizer_config.json"):
        load_teacher(f"hf:{folder}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_a_repository_in_the_cache_of_the_hub_is_the_teacher_of_its_folder(four: Path, five: Path, cache: Path) -> None:
    for folder, name in ((four, "four"), (five, "five")):
        repository = cache / f"models--some--{name}"
        shutil.copytree(folder, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        assert_equal(load_teacher(f"hf:some/{name}"), load_teacher(f"hf:{folder}"))


def test_what_a_teacher_needs_of_a_repository_is_downloaded(
    four: Path, five: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in ((four, "four"), (five, "five")):
        with hub_of(folder, f"some/{name}", tmp_path / name) as address:
            online(address, monkeypatch)
            assert_equal(load_teacher(f"hf:some/{name}"), load_teacher(f"hf:{folder}"))


@pytest.mark.parametrize("name", ["adapter_config", "quantization_config"])
def test_a_repository_whose_weights_are_not_whole_is_refused_as_its_folder_is(
    name: str, clip: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(clip, tmp_path / "folder")
    (folder / f"{name}.json").write_text("{}")
    with hub_of(folder, "some/model", tmp_path / "pages") as address:
        online(address, monkeypatch)
        with pytest.raises(RefusedError, match=f"has a {name}: only whole weights"):
            load_teacher("hf:some/model")


def online(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )


def assert_equal(one: Teacher, other: Teacher) -> None:
    assert (one.identity, one.preprocess, one.tokenizer) == (other.identity, other.preprocess, other.tokenizer)
    assert np.array_equal(one.encode_texts(TEXTS), other.encode_texts(TEXTS))
