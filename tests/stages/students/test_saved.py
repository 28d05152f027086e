"""A trained tower is two files: whole on disk before it is named, and refused when one of them is another."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cache_schema.atomic import publish_json
from cache_schema.errors import DamagedError, MismatchError, PipelineError, RefusedError, UnfinishedError, UsageError
from cache_schema.json_file import read_sealed, seal
from stages.students import Student, build_student
from stages.students.saved import (
    find_image_tower,
    load_image_tower,
    read_about,
    read_weights_sha256,
    save_image_tower,
)

ABOUT = {"run": "0" * 8, "teacher": {"specification": "stub:é", "logit_bias": None}}


@pytest.fixture(scope="module")
def student() -> Student:
    return build_student("timm:test_vit?image_size=32", 5, seed=2)


@pytest.fixture
def folder(student: Student, tmp_path: Path) -> Path:
    save_image_tower(student, tmp_path, about=ABOUT)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    """Changes values of the description and seals it again, as somebody would who knows how."""
    value = {name: kept for name, kept in read_sealed(folder / "image_tower.json").items() if name != "sha256"}
    publish_json(folder / "image_tower.json", seal({**value, **changes}))


def test_stock_safetensors_reads_every_tensor_under_the_name_of_open_clip(student: Student, folder: Path) -> None:
    tensors = load_file(folder / "image_tower.safetensors")
    wanted = student.tower.state_dict()
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)


def test_the_sha256_that_is_returned_is_that_of_the_weights_on_disk(student: Student, tmp_path: Path) -> None:
    returned = save_image_tower(student, tmp_path, about={})
    by_hand = hashlib.sha256((tmp_path / "image_tower.safetensors").read_bytes()).hexdigest()
    assert returned == by_hand == read_weights_sha256(tmp_path)


def test_saving_again_gives_the_same_bytes_and_other_weights_another_sha256(student: Student, tmp_path: Path) -> None:
    first = save_image_tower(student, tmp_path, about=ABOUT)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert save_image_tower(student, tmp_path, about=ABOUT) == first
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert files.keys() == {"image_tower.json", "image_tower.safetensors"}
    other = build_student("timm:test_vit?image_size=32", 5, seed=3)
    assert save_image_tower(other, tmp_path, about=ABOUT) != first


def test_what_it_was_trained_from_is_kept_as_it_was_given(folder: Path) -> None:
    assert read_about(folder) == ABOUT


def test_the_weights_are_written_before_the_description(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cache_schema import atomic

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "publish_json", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save_image_tower(student, tmp_path, about={})
    assert [path.name for path in tmp_path.iterdir()] == ["image_tower.safetensors"]
    with pytest.raises(UsageError, match="holds no trained student"):
        load_image_tower(tmp_path)


def test_a_tower_that_started_from_published_weights_is_built_again_without_fetching_them(tmp_path: Path) -> None:
    student = build_student("timm:test_vit?image_size=32", 5, seed=0)
    student.vision_cfg["timm_model_pretrained"] = True
    save_image_tower(student, tmp_path, about={})
    kept = json.loads((tmp_path / "image_tower.json").read_text())["tower"]
    assert kept["vision_cfg"]["timm_model_pretrained"] is False
    assert student.vision_cfg["timm_model_pretrained"] is True
    assert load_image_tower(tmp_path).vision_cfg == kept["vision_cfg"]


def test_a_run_is_its_model_folder_and_a_path_may_be_text(student: Student, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "run.json").write_text("{}")
    sha256 = save_image_tower(student, tmp_path / "model", about=ABOUT)
    assert find_image_tower(tmp_path) == tmp_path / "model" == find_image_tower(tmp_path / "model")
    assert read_weights_sha256(str(tmp_path)) == sha256 and read_about(str(tmp_path)) == ABOUT
    assert load_image_tower(str(tmp_path)).description == student.description


@pytest.mark.parametrize("read", [load_image_tower, read_about, read_weights_sha256])
def test_whatever_is_read_of_a_tower_an_unfinished_run_is_told_from_no_run(read: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no trained student \(no image_tower\.json\): name a run or an exp"):
        read(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UnfinishedError, match=r"has not ended, .*: run `pipeline distill` again"):
        read(tmp_path)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"\0", lambda _: None])
def test_cut_longer_or_missing_weights_are_refused(spoil: Any, folder: Path) -> None:
    weights = folder / "image_tower.safetensors"
    data = spoil(weights.read_bytes())
    weights.unlink() if data is None else weights.write_bytes(data)
    with pytest.raises(DamagedError, match=r"safetensors is not the file that was saved: restore it from a copy, or"):
        load_image_tower(folder)


def test_weights_of_the_right_sha256_that_are_no_safetensors_are_refused(folder: Path) -> None:
    (folder / "image_tower.safetensors").write_bytes(b"not tensors")
    edit(folder, weights_sha256=hashlib.sha256(b"not tensors").hexdigest())
    with pytest.raises(DamagedError, match=r"is no safetensors file \(.*\): restore it from a copy"):
        load_image_tower(folder)


def test_a_description_that_somebody_edited_is_refused_by_its_seal(folder: Path) -> None:
    path = folder / "image_tower.json"
    path.write_text(path.read_text().replace('"dim":5', '"dim":6').replace('"dim": 5', '"dim": 6'))
    for read in (load_image_tower, read_about, read_weights_sha256):
        with pytest.raises(DamagedError):
            read(folder)


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_cut_description_is_refused(cut: int, folder: Path) -> None:
    path = folder / "image_tower.json"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RefusedError):
        load_image_tower(folder)


def test_a_sealed_description_of_no_tower_or_of_another_is_refused(folder: Path) -> None:
    tower = read_sealed(folder / "image_tower.json")["tower"]
    edit(folder, tower=None)
    with pytest.raises(DamagedError, match=r"image_tower\.json does not describe an image tower"):
        load_image_tower(folder)
    edit(folder, tower={**tower, "dim": 7})
    with pytest.raises(MismatchError, match="does not fit the architecture"):
        load_image_tower(folder)
    edit(folder, tower={**tower, "vision_cfg": {**tower["vision_cfg"], "timm_model_name": "no_such_net"}})
    with pytest.raises(PipelineError, match="no_such_net"):
        load_image_tower(folder)
