"""The trained student as other programs want it: an image tower by itself, and with its teacher's text tower a pair.

MODEL/
  image_tower.json, image_tower.safetensors   always there, see `stages.students.saved`
  image_tower_probes.npz                      what the trained student made of the probe pictures
  teacher_image_probes.npz, teacher_text_…    what the teacher made of the probes, to recognise it by
  open_clip_config.json                       for an `open_clip:` teacher: the pair, which
  open_clip_model.safetensors                 `open_clip.create_model_from_pretrained("local-dir:MODEL")` loads
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save

from cache_schema import atomic
from cache_schema.errors import PipelineError, UsageError
from cache_schema.json_file import Json
from cache_schema.layout import Modality
from stages.described_teacher import arithmetic_of
from stages.probes import check_probes, compute_probes, probes_from_bytes, probes_to_bytes
from stages.run_folder import RunFolder, RunRecord, read_record, write_record
from stages.students import Student, load_image_tower, save_image_tower
from stages.students.encoder import StudentEncoder
from stages.teachers import Teacher, load_text_tower
from stages.teachers.open_clip import OpenClipTeacher

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
PROBES_NAME = "image_tower_probes.npz"
TEACHER_PROBES_NAMES: dict[Modality, str] = {"image": "teacher_image_probes.npz", "text": "teacher_text_probes.npz"}


def export_student(
    student: Student, folder: RunFolder, record: RunRecord, *, notice: Callable[[str], None], fence: atomic.Fence
) -> dict[str, Json]:
    """Writes the model folder of a run and returns `weights_sha256` and `has_text_tower`.

    A teacher whose text tower cannot be had now is no error: the image tower is complete, and `notice` is told how to
    add the other one later. Leaves `student` on the CPU in evaluation mode.
    """
    atomic.make_folder(folder.model)
    # Whoever loads the tower gets plain strides, in which the last bits of a convolution may differ.
    student.cpu().eval().to(memory_format=torch.contiguous_format)
    about = {"run": record.fingerprint, "teacher": record.about["teacher"]}
    sha256 = save_image_tower(student, folder.model, about=about, fence=fence)
    # The image side of a teacher is all that image probes need.
    probes = compute_probes(cast(Teacher, StudentEncoder(student)), "image")
    atomic.publish_bytes(folder.model / PROBES_NAME, probes_to_bytes(probes), fence=fence)
    for modality, name in TEACHER_PROBES_NAMES.items():
        if folder.probes(modality).exists():
            atomic.publish_bytes(folder.model / name, folder.probes(modality).read_bytes(), fence=fence)
    has_text_tower = False
    if record.about["teacher"]["specification"].startswith("open_clip:"):
        try:
            _write_pair(student, folder, record, fence)
            has_text_tower = True
        except PipelineError as error:
            notice(
                f"{folder.model} holds the image tower only, because the teacher's text tower could not be added "
                f'({error}); to complete it: python -c "from stages.export import add_text_tower; '
                f"add_text_tower('{folder.root}')\""
            )
    return {"weights_sha256": sha256, "has_text_tower": has_text_tower}


def add_text_tower(run: str | Path) -> None:
    """Completes the model folder of a finished run with its `open_clip:` teacher's text tower.

    Raises:
        UsageError: the run's teacher is none of open_clip, or open_clip has one activation flag for both towers and
            theirs differ.
        MismatchError: the teacher found is not the one that made the cache.
        PipelineError: it cannot be loaded.
    """
    folder = RunFolder(Path(run).absolute())
    record = read_record(folder)
    student = load_image_tower(folder.root)
    with folder.lock() as lock:
        _write_pair(student, folder, record, lock.fence)
        result = {**(record.result or {}), "has_text_tower": True}
        write_record(folder, replace(record, result=result), fence=lock.fence)


def _write_pair(student: Student, folder: RunFolder, record: RunRecord, fence: atomic.Fence) -> None:
    teacher = load_text_tower(record.about["teacher"]["specification"])
    require_probes(teacher, "text", folder.model)
    if not isinstance(teacher, OpenClipTeacher):
        raise UsageError(f"teacher {teacher.specification} is no open_clip model: only the image tower can be exported")
    description = student.description
    quick_gelu = any("QuickGELU" in names for names in teacher.identity["activation"].values())
    if quick_gelu != description.quick_gelu and not description.vision_cfg.get("timm_model_name"):
        raise UsageError(
            f"open_clip has one quick_gelu for both towers; the student's is {description.quick_gelu}, the teacher's "
            f"{quick_gelu}: leave quick_gelu out of --student"
        )
    tensors = {f"visual.{name}": value.contiguous() for name, value in student.tower.state_dict().items()}
    tensors |= {name: value.float().cpu().contiguous() for name, value in teacher.text_tensors().items()}
    architecture: dict[str, Any] = teacher.identity["architecture"]
    vision_cfg = {**description.vision_cfg}
    if "timm_model_pretrained" in vision_cfg:
        vision_cfg["timm_model_pretrained"] = False
    config = {
        "model_cfg": {**architecture, "vision_cfg": vision_cfg, "quick_gelu": quick_gelu},
        "preprocess_cfg": {**description.preprocess.to_json(), "mode": "RGB"},
    }
    # The configuration last: without it open_clip refuses the folder.
    atomic.publish_bytes(folder.model / WEIGHTS_NAME, save(tensors), fence=fence)
    atomic.publish_json(folder.model / CONFIG_NAME, config, fence=fence)


def require_probes(teacher: Teacher, modality: Modality, model: Path, *, device: str = "cpu") -> None:
    """Raises `MismatchError` when `teacher`, in float32, does not reproduce the probes kept in the folder `model`."""
    path = model / TEACHER_PROBES_NAMES[modality]
    if path.exists():
        arithmetic = arithmetic_of(teacher, device, "float32")
        stored = probes_from_bytes(path.read_bytes(), where=path)
        check_probes(stored, teacher, modality, where=path, arithmetic=arithmetic)
