"""A name is a run, an exported folder, an open_clip pair or a teacher; a student never meets a foreign text tower."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_schema.errors import DamagedError, MismatchError, UnfinishedError, UsageError
from stages.evaluate.models import load_model
from stages.runs.folder import RunFolder
from stages.runs.record import RunRecord, write_record
from stages.students import Student, build_student, save_image_tower
from stages.students.encoder import StudentEncoder
from stages.teachers.held import read_settings
from tests.corpora.flipping_teacher import FlippingTeacher, flips_at_load
from tests.corpora.stub_teacher import STUB, make, stub
from tests.corpora.tiny_open_clip import make_tiny_open_clip

PIXELS = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def student() -> Student:
    return build_student("timm:test_vit?image_size=32", 16, seed=0)


@pytest.fixture
def model(student: Student, tmp_path: Path) -> Any:
    """Returns model(specification): the folder of a run whose student learnt from that teacher."""

    def make_run(specification: str) -> Path:
        (tmp_path / "run" / "model").mkdir(parents=True)
        about = {"run": "", "teacher": {"specification": specification}}
        with RunFolder(tmp_path / "run").lock() as lock:
            write_record(RunFolder(tmp_path / "run"), RunRecord({}, about, result={}), fence=lock.fence)
        save_image_tower(student, tmp_path / "run" / "model", about=about)
        return tmp_path / "run"

    return make_run


def test_a_teacher_is_both_sides_of_itself() -> None:
    loaded = load_model(STUB, device="cpu")
    assert loaded.images is loaded.texts and loaded.name == STUB
    assert (loaded.learnt_from, loaded.folder) == (None, None)


def test_a_run_and_its_model_folder_are_the_student_with_the_text_tower_of_its_teacher(
    model: Any, student: Student
) -> None:
    run = model(STUB)
    for name in (str(run), str(run / "model")):
        loaded = load_model(name, device="cpu")
        assert (loaded.name, loaded.learnt_from, loaded.folder) == (name, STUB, run / "model")
        assert loaded.images.encode_images(PIXELS).shape == (2, 16)
        assert loaded.images.preprocess == student.preprocess
        assert np.array_equal(loaded.texts.encode_texts(["a cat"]), make(dim=16).encode_texts(["a cat"]))


@pytest.mark.parametrize("learnt_from", [flips_at_load("autocast"), "imported:clip"])
def test_what_a_teacher_sets_when_it_is_loaded_is_set_for_it_alone(
    learnt_from: str, model: Any, student: Student
) -> None:
    before = read_settings()
    pictures = StudentEncoder(student).encode_images(PIXELS)
    loaded = load_model(str(model(learnt_from)), device="cpu", teacher=flips_at_load("autocast"))
    for _ in range(2):
        assert np.array_equal(loaded.images.encode_images(PIXELS), pictures)
        texts = loaded.texts.encode_texts(["a cat", "two"])
    assert read_settings() == before
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(FlippingTeacher().encode_texts(["a cat", "two"]), texts)
    assert not np.array_equal(FlippingTeacher().encode_texts(["a cat", "two"]), texts)


def test_a_model_that_is_a_teacher_is_held_to_what_it_sets_when_it_is_loaded() -> None:
    before = read_settings()
    loaded = load_model(flips_at_load("autocast"), device="cpu")
    assert read_settings() == before
    with torch.autocast("cpu", torch.bfloat16):
        expected = FlippingTeacher().encode_texts(["a cat", "two"])
    assert np.array_equal(loaded.texts.encode_texts(["a cat", "two"]), expected)


def test_an_open_clip_folder_is_a_teacher_when_no_student_is_in_it(tmp_path: Path) -> None:
    folder = make_tiny_open_clip(tmp_path / "pair")
    loaded = load_model(str(folder), device="cpu")
    assert loaded.images is loaded.texts and loaded.folder is None
    assert loaded.texts.specification == f"open_clip:local-dir:{folder}"


def test_the_text_tower_beside_the_student_goes_before_the_one_that_was_recorded(model: Any) -> None:
    run = model("python:no.such.module:make")
    make_tiny_open_clip(run / "model")
    loaded = load_model(str(run), device="cpu")
    assert loaded.texts.specification == f"open_clip:local-dir:{run / 'model'}"
    assert loaded.learnt_from == "python:no.such.module:make"


@pytest.mark.parametrize("name", ["clip", "no/such/run", "", "openclip:ViT-B-32"])
def test_what_is_neither_is_a_usage_error_that_lists_the_kinds_of_teacher(name: str, tmp_path: Path) -> None:
    if not name:
        name = str(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"is neither a folder nor a teacher \(.*open_clip:….*\): name a run, an exp"):
        load_model(name, device="cpu")


def test_an_empty_folder_and_an_unfinished_run_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no trained student"):
        load_model(str(tmp_path), device="cpu")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UnfinishedError, match="has not ended"):
        load_model(str(tmp_path), device="cpu")


def test_a_student_of_imported_features_needs_a_teacher_that_is_named(model: Any) -> None:
    run = model("imported:clip")
    with pytest.raises(UsageError) as refusal:
        load_model(str(run), device="cpu")
    assert str(refusal.value) == (
        f"model {run} learnt from features that were imported (imported:clip), whose text tower nobody recorded: name "
        "the model that made them with --teacher"
    )
    loaded = load_model(str(run), device="cpu", teacher=STUB)
    assert loaded.texts.specification == STUB and loaded.learnt_from is None and loaded.folder == run / "model"


def test_a_named_teacher_of_another_width_is_refused_with_both_widths(model: Any) -> None:
    run, other = model("imported:clip"), stub(dim=8)
    with pytest.raises(MismatchError) as refusal:
        load_model(str(run), device="cpu", teacher=other)
    assert str(refusal.value).startswith(
        f"teacher {other} has features of width 8, model {run} learnt from ones of width 16: "
    )


def test_damaged_probes_beside_a_student_are_not_taken_for_missing_ones(model: Any) -> None:
    from stages.export.model_folder import TEACHER_PROBES_NAMES

    run = model(STUB)
    (run / "model" / TEACHER_PROBES_NAMES["text"]).write_bytes(b"no probes")
    with pytest.raises(DamagedError):
        load_model(str(run), device="cpu")


def test_a_device_that_is_not_there_is_no_cpu(model: Any) -> None:
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        load_model(str(model(STUB)), device="gpu")
