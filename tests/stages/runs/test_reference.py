"""`RUN@STEP` is a checkpoint of a run, finished or not; what is not there is refused with what is."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from cache_schema import atomic
from cache_schema.errors import DamagedError, MismatchError, UsageError
from cache_schema.json_file import seal
from stages.runs.checkpoint import save_checkpoint
from stages.runs.folder import RunFolder
from stages.runs.record import read_record
from stages.runs.reference import find_checkpoint, load_checkpoint_student, read_reference_sha256
from stages.students import load_image_tower
from tests.corpora.golden import RUN as GOLDEN
from tests.corpora.golden import golden_architecture
from tests.corpora.resealed import reseal

PIXELS = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32))


@pytest.fixture(scope="module", autouse=True)
def tiny_student() -> Iterator[None]:
    with golden_architecture():
        yield


@pytest.fixture(params=["stopped", "finished"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a run that keeps a checkpoint after two of its four steps."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "run"))


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "stopped", tmp_path / "run"))


def tensors_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:09d}.safetensors")


def save_step(run: Path, step: int, tensors: dict[str, torch.Tensor]) -> None:
    fingerprint = read_record(RunFolder(run)).fingerprint
    save_checkpoint(run / "checkpoints", tensors, step=step, run=fingerprint, state={}, keep=9)


def state_of(name: str) -> dict[str, torch.Tensor]:
    reference = find_checkpoint(name)
    assert reference is not None
    return load_checkpoint_student(reference).state_dict()


def refusal_of(name: str) -> str:
    with pytest.raises(UsageError) as refusal:
        find_checkpoint(name)
    return str(refusal.value)


@pytest.mark.parametrize("step", ["2", "newest", "000000002"])
def test_a_checkpoint_of_a_stopped_and_of_a_finished_run_gives_the_weights_in_its_file(run: Path, step: str) -> None:
    found = state_of(f"{run}@{step}")
    stored = {name: value for name, value in tensors_at(run, 2).items() if name.startswith("model.")}
    assert {f"model.{name}" for name in found} == set(stored) and len(found) > 10
    assert all(torch.equal(value, stored[f"model.{name}"]) for name, value in found.items())


def test_a_checkpoint_is_an_earlier_student_than_the_one_that_was_exported(tmp_path: Path) -> None:
    run = Path(shutil.copytree(GOLDEN / "finished", tmp_path / "run"))
    reference = find_checkpoint(f"{run}@2")
    assert reference is not None and (reference.step, reference.folder.root) == (2, run)
    student = load_checkpoint_student(reference)
    assert not student.training
    assert not torch.equal(student(PIXELS), load_image_tower(run)(PIXELS))


def test_the_sha256_of_a_reference_is_that_of_the_file_of_its_tensors(run: Path) -> None:
    reference = find_checkpoint(f"{run}@2")
    assert reference is not None
    data = (run / "checkpoints" / "step-000000002.safetensors").read_bytes()
    assert read_reference_sha256(reference) == hashlib.sha256(data).hexdigest()


def test_newest_is_the_last_step_and_best_the_one_that_held_out_pictures_chose(stopped: Path) -> None:
    tensors = tensors_at(stopped, 2)
    for step in (3, 10):
        save_step(stopped, step, {name: value + step if "proj" in name else value for name, value in tensors.items()})
    atomic.publish_json(stopped / "checkpoints" / "best.json", seal({"step": 3, "agreement": 0.5}))
    steps = {name: find_checkpoint(f"{stopped}@{name}") for name in ("newest", "best", "2")}
    assert {name: found.step for name, found in steps.items() if found} == {"newest": 10, "best": 3, "2": 2}
    projection = "tower.proj"
    assert torch.equal(state_of(f"{stopped}@best")[projection], tensors[f"model.{projection}"] + 3)


def test_averaged_weights_are_taken_where_the_run_keeps_them(stopped: Path) -> None:
    tensors = tensors_at(stopped, 2)
    averages = {name.replace("model.", "ema.", 1): value / 2 for name, value in tensors.items() if "model." in name}
    save_step(stopped, 4, {**tensors, **averages})
    found = state_of(f"{stopped}@4")
    assert all(torch.equal(value, tensors[f"model.{name}"] / 2) for name, value in found.items())


@pytest.mark.parametrize(
    ("step", "lacks"),
    [
        ("7", "no checkpoint after step 7"),
        ("best", "no best checkpoint (no best.json: nothing was held out to tell by)"),
        ("last", "no step 'last'"),
        ("", "no step ''"),
        ("-2", "no step '-2'"),
        ("٢", "no step '٢'"),
    ],
)
def test_a_step_that_is_not_there_is_refused_with_those_that_are(stopped: Path, step: str, lacks: str) -> None:
    save_step(stopped, 3, tensors_at(stopped, 2))
    assert refusal_of(f"{stopped}@{step}") == (
        f"{stopped}@{step} is not there: run {stopped} has {lacks}: name one of its steps 2, 3, or newest"
    )
    for advised in ("2", "3", "newest"):
        assert find_checkpoint(f"{stopped}@{advised}") is not None


def test_a_best_step_that_was_removed_is_refused_with_those_that_are_there(stopped: Path) -> None:
    atomic.publish_json(stopped / "checkpoints" / "best.json", seal({"step": 1, "agreement": 0.5}))
    assert "has no checkpoint after step 1: name one of its steps 2, or newest" in refusal_of(f"{stopped}@best")


def test_a_run_without_any_checkpoint_says_so(stopped: Path) -> None:
    shutil.rmtree(stopped / "checkpoints")
    assert refusal_of(f"{stopped}@newest").endswith("has no checkpoint: run `pipeline distill` until it saves one")


def test_a_folder_whose_own_name_holds_an_at_sign_is_itself_and_has_checkpoints_too(tmp_path: Path) -> None:
    for name in ("run", "run@2"):
        shutil.copytree(GOLDEN / "stopped", tmp_path / name)
    assert find_checkpoint(tmp_path / "run@2") is None
    assert find_checkpoint(tmp_path / "run") is None
    reference = find_checkpoint(f"{tmp_path / 'run@2'}@2")
    assert reference is not None and reference.folder.root == tmp_path / "run@2"


@pytest.mark.parametrize("name", ["run", "open_clip:ViT-B-32@weights.pt", "nothing@2", "hf:org/name@main", "@2"])
def test_what_does_not_name_a_folder_before_the_at_sign_is_no_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(name) is None


def test_a_step_of_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "finished", tmp_path / "run")
    name = f"{tmp_path / 'run' / 'model'}@2"
    assert refusal_of(name) == (
        f"{name} names step '2' of {tmp_path / 'run' / 'model'}, which holds no distillation run (no run.json): name "
        "the folder of a run before the @"
    )


def test_a_damaged_checkpoint_is_refused_with_the_steps_that_are_left(stopped: Path) -> None:
    save_step(stopped, 3, tensors_at(stopped, 2))
    weights = stopped / "checkpoints" / "step-000000003.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DamagedError) as refusal:
        state_of(f"{stopped}@newest")
    assert f"{weights} is damaged" in str(refusal.value)
    assert str(refusal.value).endswith(": restore it from a copy, or name another of its steps 2")
    assert state_of(f"{stopped}@2")


def test_a_checkpoint_that_a_training_run_removed_meanwhile_is_refused_as_not_there(stopped: Path) -> None:
    save_step(stopped, 3, tensors_at(stopped, 2))
    reference = find_checkpoint(f"{stopped}@2")
    assert reference is not None
    for suffix in ("json", "safetensors"):
        (stopped / "checkpoints" / f"step-000000002.{suffix}").unlink()
    with pytest.raises(UsageError, match="no checkpoint after step 2 any more: name one of its steps 3, or newest"):
        load_checkpoint_student(reference)


def test_a_checkpoint_of_another_run_is_refused(stopped: Path) -> None:
    reseal(stopped / "checkpoints" / "step-000000002.json", run="a" * 64)
    with pytest.raises(MismatchError, match=r"belongs to run aaaaaaaaaaaa, .*run\.json is that of run de6aa82ff54e"):
        state_of(f"{stopped}@2")


def test_a_checkpoint_that_lacks_a_tensor_is_refused_and_nothing_is_left_at_random(stopped: Path) -> None:
    tensors = tensors_at(stopped, 2)
    del tensors["model.tower.proj"]
    path = stopped / "checkpoints" / "step-000000002"
    data = save(tensors)
    path.with_suffix(".safetensors").write_bytes(data)
    reseal(path.with_suffix(".json"), tensors={"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)})
    with pytest.raises(MismatchError, match=r"1 missing \(proj\)"):
        state_of(f"{stopped}@2")


def test_a_tower_that_began_with_pretrained_weights_is_built_without_fetching_them(stopped: Path) -> None:
    """The weights of a name that exists nowhere cannot be fetched."""
    record = read_record(RunFolder(stopped))
    student = {
        **record.asked["student"],
        "specification": "timm:test_vit",
        "vision_cfg": {
            "timm_model_name": "test_vit",
            "timm_model_pretrained": True,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 32,
        },
    }
    from stages.students import Student, TowerDescription

    vision_cfg = {**student["vision_cfg"], "timm_model_pretrained": False}
    plain = replace(TowerDescription.from_json(student, "here"), vision_cfg=vision_cfg)
    tower = Student(plain, seed=3)
    reseal(stopped / "run.json", asked={**record.asked, "student": student})
    save_step(stopped, 5, {f"model.{name}": value for name, value in tower.state_dict().items()})
    found = state_of(f"{stopped}@5")
    assert all(torch.equal(value, tower.state_dict()[name]) for name, value in found.items())
