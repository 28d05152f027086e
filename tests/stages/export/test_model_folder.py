"""A run's model folder: the image tower always, the open_clip pair for an open_clip teacher."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_schema.errors import MismatchError, PipelineError, UnfinishedError
from cache_schema.json_file import read_sealed
from stages.distill.config import DistillConfig
from stages.distill.run import distill
from stages.evaluate.models import load_model
from stages.export.model_folder import add_text_tower, export_image_tower, load_trained, read_trained_sha256
from stages.students import build_student, load_image_tower
from stages.teachers import load_teacher
from tests.corpora.extracts import extracted_cache
from tests.corpora.golden import RUN as GOLDEN
from tests.corpora.golden import golden_architecture
from tests.corpora.resealed import reseal
from tests.corpora.runs import STUDENT, distill_config
from tests.corpora.small_corpus import write_sources
from tests.corpora.stub_teacher import STUB
from tests.corpora.tiny_open_clip import make_tiny_open_clip

PAIRS = pytest.mark.parametrize(
    ("student", "quick_gelu"),
    [
        ("timm:resnet10t?image_size=32", True),
        ("timm:mobilenetv3_small_050?image_size=32", False),
        ("open_clip:ViT-S-32-alt?image_size=64", True),
        ("open_clip:ViT-S-32-alt?image_size=64", False),
    ],
)


def _corpus(folder, **teacher):
    """A teacher and the cache it made."""
    make_tiny_open_clip(folder / "teacher", **teacher)
    specification = f"open_clip:local-dir:{folder / 'teacher'}"
    sources = write_sources(folder, num_images=16, num_texts=20)
    return specification, extracted_cache(folder / "cache", *sources, teacher=specification)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    return _corpus(tmp_path_factory.mktemp("corpus"))


def _config(cache, out: Path, student=STUDENT) -> DistillConfig:
    return distill_config(cache.path, out, student=student, steps=2, batch_size=8, text_batch_size=8)


def _pixels(size):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, size, size)).astype(np.float32))


@PAIRS
def test_open_clip_loads_the_pair_of_student_and_teacher(tmp_path, student, quick_gelu):
    import open_clip

    specification, cache = _corpus(tmp_path, quick_gelu=quick_gelu)
    result = distill(_config(cache, tmp_path / "run", student))
    assert result["has_text_tower"]
    location = f"local-dir:{tmp_path / 'run' / 'model'}"
    model, preprocess = open_clip.create_model_from_pretrained(location)
    tower = load_image_tower(tmp_path / "run")
    assert preprocess.transforms[0].size in (tower.preprocess.size[0], tower.preprocess.size)
    pixels = _pixels(tower.preprocess.size[0])
    sentences = ["a red disc", "a blue square on white"]
    tokens = open_clip.get_tokenizer(location)(sentences)
    with torch.inference_mode():
        assert torch.equal(model.eval().encode_image(pixels), tower(pixels))
        # The teacher attends through another kernel than a model fresh from open_clip on some processors.
        of_teacher = load_teacher(specification).encode_texts(sentences)
        assert np.allclose(model.encode_text(tokens).numpy(), of_teacher, rtol=1e-5, atol=1e-5)
    assert model.logit_scale.exp().item() == pytest.approx(load_teacher(specification).logit_scale)


def test_the_pair_is_itself_a_teacher(corpus, tmp_path):
    specification, cache = corpus
    distill(_config(cache, tmp_path / "run"))
    pair = load_teacher(f"open_clip:local-dir:{tmp_path / 'run' / 'model'}")
    assert np.array_equal(pair.encode_texts(["one"]), load_teacher(specification).encode_texts(["one"]))


def test_a_student_with_a_custom_text_class_teacher_keeps_open_clips_names(tmp_path):
    import open_clip

    _, cache = _corpus(tmp_path, custom_text=True)
    distill(_config(cache, tmp_path / "run"))
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'run' / 'model'}")
    assert type(model).__name__ == "CustomTextCLIP"


def test_without_the_teachers_weights_the_image_tower_is_exported_and_can_be_completed_later(tmp_path):
    _, cache = _corpus(tmp_path)
    config = _config(cache, tmp_path / "run")
    away = (tmp_path / "teacher").rename(tmp_path / "away")
    said = []
    result = distill(config, notice=said.append)
    assert not result["has_text_tower"]
    assert any("holds the image tower only" in sentence and "add_text_tower" in sentence for sentence in said)
    assert not (tmp_path / "run" / "model" / "open_clip_config.json").exists()
    assert load_image_tower(tmp_path / "run")(_pixels(32)).shape == (3, 16)
    away.rename(tmp_path / "teacher")
    add_text_tower(tmp_path / "run")
    assert (tmp_path / "run" / "model" / "open_clip_config.json").exists()
    assert distill(config)["has_text_tower"]


def test_another_teacher_at_the_same_place_is_never_paired_with_the_student(tmp_path):
    _, cache = _corpus(tmp_path)
    shutil.rmtree(tmp_path / "teacher")
    make_tiny_open_clip(tmp_path / "teacher", seed=1)
    said = []
    assert not distill(_config(cache, tmp_path / "run"), notice=said.append)["has_text_tower"]
    assert any("does not reproduce probe text" in sentence for sentence in said)


def test_a_run_moves_with_its_folder(corpus, tmp_path):
    _, cache = corpus
    distill(_config(cache, tmp_path / "run"))
    before = load_image_tower(tmp_path / "run")(_pixels(32))
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert torch.equal(load_image_tower(moved)(_pixels(32)), before)
    assert torch.equal(load_image_tower(moved / "model")(_pixels(32)), before)


def test_a_student_takes_its_teachers_activation_so_that_the_pair_can_share_one_file(corpus, tmp_path):
    _, cache = corpus
    config = _config(cache, tmp_path / "run", "open_clip:ViT-S-32-alt?image_size=32")
    distill(config)
    assert load_image_tower(tmp_path / "run").description.quick_gelu
    said = []
    stubborn = replace(config, out=tmp_path / "other", student=f"{config.student}&quick_gelu=false")
    assert not distill(stubborn, notice=said.append)["has_text_tower"]
    assert any("one quick_gelu for both towers" in sentence for sentence in said)


def test_open_clip_files_of_the_pair_hold_no_pickle_and_every_tensor_once(corpus, tmp_path):
    _, cache = corpus
    distill(_config(cache, tmp_path / "run"))
    model = tmp_path / "run" / "model"
    tensors = load_file(model / "open_clip_model.safetensors")
    tower = load_file(model / "image_tower.safetensors")
    assert {name.removeprefix("visual.") for name in tensors if name.startswith("visual.")} == set(tower)
    assert json.loads((model / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 16
    assert not [path for path in model.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_completing_a_run_with_a_changed_tower_is_refused(corpus, tmp_path):
    _, cache = corpus
    distill(_config(cache, tmp_path / "run"))
    weights = tmp_path / "run" / "model" / "image_tower.safetensors"
    tensors = load_file(weights)
    save_file({name: value + 1 for name, value in tensors.items()}, weights)
    with pytest.raises(PipelineError, match="is not the file that was saved"):
        add_text_tower(tmp_path / "run")


def _exported(folder: Path, seed: int, *, image_size: int = 32) -> Path:
    student = build_student(f"timm:test_vit?image_size={image_size}", 16, seed=seed)
    about = {"run": "", "teacher": {"specification": STUB}}
    export_image_tower(student, folder, about=about, teacher_probes={}, fence=None)
    return folder


def test_a_student_that_was_exported_is_loaded_also_without_its_probes(tmp_path):
    folder = _exported(tmp_path / "one", 1)
    weights = load_file(folder / "image_tower.safetensors")
    for _ in range(2):
        loaded = load_trained(folder).tower.state_dict()
        assert all(torch.equal(loaded[name], weights[name]) for name in weights)
        (folder / "image_tower_probes.npz").unlink(missing_ok=True)


def test_weights_of_another_student_under_a_resealed_description_are_refused(tmp_path):
    one, other = _exported(tmp_path / "one", 1), _exported(tmp_path / "two", 2)
    data = (other / "image_tower.safetensors").read_bytes()
    (one / "image_tower.safetensors").write_bytes(data)
    reseal(one / "image_tower.json", weights_sha256=hashlib.sha256(data).hexdigest())
    said = r"holds another student than was exported there: .* have a cosine of -?\d\.\d{4} with those of"
    with pytest.raises(MismatchError, match=said):
        load_trained(one)
    with pytest.raises(MismatchError, match=said):
        load_model(str(one), device="cpu")


def test_another_description_under_its_own_seal_is_refused(tmp_path):
    folder = _exported(tmp_path / "one", 1)
    tower = read_sealed(folder / "image_tower.json")["tower"]
    tower["preprocess"] = {**tower["preprocess"], "mean": [0.0, 0.0, 0.0], "std": [0.9, 0.9, 0.9]}
    reseal(folder / "image_tower.json", tower=tower)
    with pytest.raises(MismatchError, match="holds another student"):
        load_trained(folder)


def test_an_unfinished_run_is_refused_with_the_checkpoint_that_can_be_used_and_it_can(tmp_path):
    with golden_architecture():
        run = Path(shutil.copytree(GOLDEN / "stopped", tmp_path / "run"))
        for read in (load_trained, read_trained_sha256):
            with pytest.raises(UnfinishedError) as refusal:
                read(run)
            assert str(refusal.value) == (
                f"run {run} has not ended, so it has no trained student: name {run}@2, its newest checkpoint, or run "
                "`pipeline distill` again"
            )
        stored = load_file(run / "checkpoints" / "step-000000002.safetensors")
        found = load_trained(f"{run}@2").state_dict()
        assert all(torch.equal(value, stored[f"model.{name}"]) for name, value in found.items())


def test_a_run_that_goes_on_after_its_export_is_refused_and_every_advice_works(tmp_path):
    """As an amendment leaves it: no result, and the model of before."""
    with golden_architecture():
        run = Path(shutil.copytree(GOLDEN / "finished", tmp_path / "run"))
        before = read_trained_sha256(run)
        reseal(run / "run.json", result=None)
        with pytest.raises(UnfinishedError) as refusal:
            load_trained(run)
        assert str(refusal.value) == (
            f"run {run} has not ended, and {run / 'model'} is older than it: name {run}@2, its newest checkpoint, or "
            f"name {run / 'model'} itself, or run `pipeline distill` again"
        )
        assert load_trained(f"{run}@2") and load_trained(run / "model")
        assert read_trained_sha256(run / "model") == before


def test_the_sha256_of_what_was_trained_is_that_of_the_file_it_is_read_from(tmp_path):
    run = Path(shutil.copytree(GOLDEN / "finished", tmp_path / "run"))
    weights = run / "model" / "image_tower.safetensors"
    state = run / "checkpoints" / "step-000000002.safetensors"
    assert read_trained_sha256(run) == read_trained_sha256(run / "model") == sha256_of(weights)
    assert read_trained_sha256(f"{run}@2") == sha256_of(state)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
