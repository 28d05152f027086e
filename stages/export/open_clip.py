"""A student's image tower and its `open_clip:` teacher's text tower, as one model that stock open_clip loads."""

from pathlib import Path
from typing import Any

from safetensors.torch import save

from cache_schema import atomic
from cache_schema.errors import UsageError
from stages.students import Student
from stages.teachers import Teacher
from stages.teachers.open_clip import OpenClipTeacher

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"


def write_pair(student: Student, teacher: Teacher, folder: Path, *, fence: atomic.Fence | None) -> None:
    """Writes the two files of the pair into `folder`, the configuration last: without it open_clip refuses the folder.

    Raises:
        UsageError: the teacher is none of open_clip, or open_clip has one activation flag for both towers and theirs
            differ.
    """
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
    atomic.publish_bytes(folder / WEIGHTS_NAME, save(tensors), fence=fence)
    atomic.publish_json(folder / CONFIG_NAME, config, fence=fence)
