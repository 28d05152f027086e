"""The folder of a trained student: its image tower by itself, and with its teacher's text tower a pair.

MODEL/
  image_tower.json, image_tower.safetensors   always there, see `stages.students.saved`
  image_tower_probes.npz                      what the trained student made of the probe pictures
  teacher_image_probes.npz, teacher_text_…    what the teacher made of the probes, to recognise it by
  open_clip_config.json                       for an `open_clip:` teacher: the pair, which
  open_clip_model.safetensors                 `open_clip.create_model_from_pretrained("local-dir:MODEL")` loads
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from cache_schema import atomic
from cache_schema.errors import MismatchError, UnfinishedError
from cache_schema.json_file import Json
from cache_schema.layout import Modality
from cache_schema.reading import read_file
from stages.export.open_clip import write_pair
from stages.runs.folder import RunFolder
from stages.runs.record import read_record, write_record
from stages.runs.reference import find_checkpoint, load_checkpoint_student, read_reference_sha256, unfinished
from stages.students import Student, load_image_tower, save_image_tower
from stages.students.encoder import StudentEncoder
from stages.students.saved import find_image_tower, read_weights_sha256
from stages.teachers import Teacher, load_text_tower
from stages.teachers.described import arithmetic_of
from stages.teachers.probes import check_probes, compute_probes, probes_from_bytes, probes_to_bytes

PROBES_NAME = "image_tower_probes.npz"
_LEAST_COSINE = 0.999
TEACHER_PROBES_NAMES: dict[Modality, str] = {"image": "teacher_image_probes.npz", "text": "teacher_text_probes.npz"}


def export_image_tower(
    student: Student,
    folder: Path,
    *,
    about: dict[str, Json],
    teacher_probes: Mapping[Modality, bytes],
    fence: atomic.Fence | None,
) -> str:
    """Writes everything of the model folder but the pair, and returns the SHA-256 of the weights.

    Leaves `student` on the CPU in evaluation mode.

    Args:
        student: trained.
        folder: made when missing.
        about: JSON kept beside the architecture: what the tower was trained from.
        teacher_probes: what the teacher made of the probes, as the bytes of probes.npz, where it is known.
        fence: the fence of the run's lock.
    """
    atomic.make_folder(folder)
    # Whoever loads the tower gets plain strides, in which the last bits of a convolution may differ.
    student.cpu().eval().to(memory_format=torch.contiguous_format)
    sha256 = save_image_tower(student, folder, about=about, fence=fence)
    # The image side of a teacher is all that image probes need.
    probes = compute_probes(cast(Teacher, StudentEncoder(student)), "image")
    atomic.publish_bytes(folder / PROBES_NAME, probes_to_bytes(probes), fence=fence)
    for modality, data in teacher_probes.items():
        atomic.publish_bytes(folder / TEACHER_PROBES_NAMES[modality], data, fence=fence)
    return sha256


def load_trained(path: str | Path) -> Student:
    """Returns the student of a run, of a checkpoint of one (`RUN@STEP`) or of an exported folder.

    A student that was exported is known to be the one whose probes lie beside it.

    Raises:
        UsageError: there is no such checkpoint; lists those that are there.
        UnfinishedError: the run has not ended; names its newest checkpoint.
        MismatchError: it makes other features of the probes than the student that was exported: its weights, or what
            describes them, are another student's.
        PipelineError: as `load_image_tower` and `load_checkpoint_student`.
    """
    reference = find_checkpoint(path)
    if reference is not None:
        return load_checkpoint_student(reference)
    folder = find_exported(path)
    student = load_image_tower(folder)
    probes = folder / PROBES_NAME
    data = read_file(probes)
    if data is not None:
        stored = np.asarray(probes_from_bytes(data, where=probes)["features"], np.float32)
        made = compute_probes(cast(Teacher, StudentEncoder(student)), "image")
        now = np.asarray(made["features"], np.float32)
        cosine = float((stored * now).sum(axis=1).min()) if stored.shape == now.shape else 0.0
        if not cosine >= _LEAST_COSINE:
            raise MismatchError(
                f"{probes.parent} holds another student than was exported there: its features of the probes have a "
                f"cosine of {cosine:.4f} with those of {PROBES_NAME}, less than {_LEAST_COSINE}: restore the folder "
                "from a copy, or train again"
            )
    return student


def read_trained_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of the weights file that `load_trained` reads: of a checkpoint, with the whole state in it.

    Errors are those of `load_trained`.
    """
    reference = find_checkpoint(path)
    return read_weights_sha256(find_exported(path)) if reference is None else read_reference_sha256(reference)


def find_exported(path: str | Path) -> Path:
    """Returns the folder of the exported student: `path` itself, or `model` inside a run.

    Raises:
        UsageError: `path` holds neither.
        UnfinishedError: the run has not ended, or goes on since it exported one; names its newest checkpoint.
    """
    try:
        folder = find_image_tower(Path(path))
    except UnfinishedError as error:
        raise unfinished(path) from error
    run = RunFolder(Path(path))
    if folder != run.root and run.run_json.exists() and read_record(run).result is None:
        raise unfinished(path, earlier=folder)
    return folder


def export_pair(student: Student, folder: Path, teacher: str, *, fence: atomic.Fence | None) -> None:
    """Completes the model folder of `student` with the text tower of `teacher`, a specification.

    Raises:
        UsageError: the teacher is none of open_clip, or open_clip has one activation flag for both towers and theirs
            differ.
        MismatchError: the teacher found is not the one that made the cache.
        PipelineError: it cannot be loaded.
    """
    loaded = load_text_tower(teacher)
    require_probes(loaded, "text", folder)
    write_pair(student, loaded, folder, fence=fence)


def add_text_tower(run: str | Path) -> None:
    """Completes the model folder of the finished run at `run`, as `export_pair` does."""
    folder = RunFolder(Path(run).absolute())
    record = read_record(folder)
    student = load_trained(folder.root)
    with folder.lock() as lock:
        export_pair(student, folder.model, record.about["teacher"]["specification"], fence=lock.fence)
        result = {**(record.result or {}), "has_text_tower": True}
        write_record(folder, replace(record, result=result), fence=lock.fence)


def require_probes(teacher: Teacher, modality: Modality, model: Path, *, device: str = "cpu") -> None:
    """Raises `MismatchError` when `teacher`, in float32, does not reproduce the probes kept in the folder `model`.

    Args:
        teacher: computes in this process, on `device`.
        modality: the modality of the probes.
        model: a model folder, or a run, which keeps those of its cache.
        device: a torch device.
    """
    of_run = RunFolder(model).probes(modality)
    path = of_run if of_run.exists() else model / TEACHER_PROBES_NAMES[modality]
    if path.exists():
        arithmetic = arithmetic_of(teacher, device, "float32")
        stored = probes_from_bytes(path.read_bytes(), where=path)
        check_probes(stored, teacher, modality, where=path, arithmetic=arithmetic)
