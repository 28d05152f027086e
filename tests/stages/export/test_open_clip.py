"""A pair is one open_clip folder of two files: the image tower is the student's, all else is the teacher's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cache_schema import atomic
from cache_schema.errors import UsageError
from stages.export.open_clip import write_pair
from stages.students import Student, build_student
from stages.teachers import load_teacher, load_text_tower
from tests.corpora.stub_teacher import STUB
from tests.corpora.tiny_open_clip import make_tiny_open_clip, tiny_config

VIT = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}


@pytest.fixture(scope="module")
def student() -> Student:
    return build_student("timm:test_vit?image_size=32", 16, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_open_clip(tmp_path_factory.mktemp("teacher"))


def test_tensors_are_the_students_image_tower_and_all_else_of_the_teacher(
    student: Student, folder: Path, tmp_path: Path
) -> None:
    write_pair(student, load_text_tower(f"open_clip:local-dir:{folder}"), tmp_path, fence=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]
    found = load_file(tmp_path / "open_clip_model.safetensors")
    teacher = load_file(folder / "open_clip_model.safetensors")
    wanted = {f"visual.{name}": value for name, value in student.tower.state_dict().items()}
    wanted |= {name: value for name, value in teacher.items() if not name.startswith("visual.")}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_configuration_is_the_teachers_with_the_students_tower_and_preprocessing(
    student: Student, folder: Path, tmp_path: Path
) -> None:
    student.vision_cfg["timm_model_pretrained"] = True
    write_pair(student, load_text_tower(f"open_clip:local-dir:{folder}"), tmp_path, fence=None)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert student.vision_cfg["timm_model_pretrained"] is True
    assert config["model_cfg"]["vision_cfg"] == {**student.vision_cfg, "timm_model_pretrained": False}
    assert config["model_cfg"]["text_cfg"] == tiny_config()["model_cfg"]["text_cfg"]
    assert (config["model_cfg"]["embed_dim"], config["model_cfg"]["quick_gelu"]) == (16, True)
    assert config["preprocess_cfg"] == {**student.preprocess.to_json(), "mode": "RGB"}


def test_weights_of_a_teacher_in_half_precision_are_written_in_full(
    student: Student, folder: Path, tmp_path: Path
) -> None:
    write_pair(student, load_teacher(f"open_clip:local-dir:{folder}", precision="float16"), tmp_path, fence=None)
    found = load_file(tmp_path / "open_clip_model.safetensors")
    assert {value.dtype for value in found.values() if value.is_floating_point()} == {torch.float32}


def test_a_teacher_of_another_kind_is_refused_and_nothing_is_written(student: Student, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        write_pair(student, load_teacher(STUB), tmp_path, fence=None)
    assert str(refusal.value) == f"teacher {STUB} is no open_clip model: only the image tower can be exported"
    assert list(tmp_path.iterdir()) == []


def test_towers_of_two_activations_do_not_fit_one_flag_unless_timm_brings_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    monkeypatch.setattr(open_clip, "get_model_config", lambda name: {"vision_cfg": VIT})
    teacher = load_text_tower(f"open_clip:local-dir:{folder}")
    for quick_gelu in (False, True):
        student = build_student(f"open_clip:tiny?quick_gelu={str(quick_gelu).lower()}", 16, seed=0)
        if quick_gelu:
            write_pair(student, teacher, tmp_path, fence=None)
            assert (tmp_path / "open_clip_config.json").exists()
            continue
        with pytest.raises(UsageError, match=r"the student's is False, the teacher's True: leave quick_gelu out of"):
            write_pair(student, teacher, tmp_path, fence=None)
        assert list(tmp_path.iterdir()) == []


def test_the_configuration_is_written_after_the_weights(
    student: Student, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    publish = atomic.publish_bytes

    def recorded(path: Path, data: Any, **fence: Any) -> None:
        written.append(path.name)
        publish(path, data, **fence)

    monkeypatch.setattr(atomic, "publish_bytes", recorded)
    write_pair(student, load_text_tower(f"open_clip:local-dir:{folder}"), tmp_path, fence=None)
    assert written == ["open_clip_model.safetensors", "open_clip_config.json"]
