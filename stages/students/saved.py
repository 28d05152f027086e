"""A trained image tower on disk: two files that need nothing but open_clip (and timm) to become a model again.

`image_tower.json` describes the architecture and carries the SHA-256 of `image_tower.safetensors`, the weights.
"""

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from cache_schema import atomic
from cache_schema.errors import DamagedError, UnfinishedError, UsageError
from cache_schema.json_file import Json, read_sealed, seal
from cache_schema.sha256 import sha256_of
from stages.students.base import Student, TowerDescription
from stages.teachers.checkpoint_weights import load_all

DESCRIPTION_NAME = "image_tower.json"
WEIGHTS_NAME = "image_tower.safetensors"
_IN_RUN = "model"


def save_image_tower(
    student: Student, folder: Path, *, about: dict[str, Json], fence: atomic.Fence | None = None
) -> str:
    """Writes `student` into `folder`, weights first, and returns the SHA-256 of the weights.

    Args:
        student: on any device.
        folder: an existing folder.
        about: JSON kept beside the architecture: what the tower was trained from.
        fence: the fence of the run's lock.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in student.tower.state_dict().items()}
    data = save(tensors)
    sha256 = sha256_of(data)
    # Whoever builds the tower again brings its weights along.
    vision_cfg = dict(student.vision_cfg)
    if "timm_model_pretrained" in vision_cfg:
        vision_cfg["timm_model_pretrained"] = False
    description = replace(student.description, vision_cfg=vision_cfg)
    atomic.publish_bytes(folder / WEIGHTS_NAME, data, fence=fence)
    value = {"tower": description.to_json(), "weights_sha256": sha256, "about": about}
    atomic.publish_json(folder / DESCRIPTION_NAME, seal(value), fence=fence)
    return sha256


def load_image_tower(path: str | Path) -> Student:
    """Returns the trained student of a run, or of an exported folder, in evaluation mode, on the CPU.

    Works from the folder alone: no teacher, cache, network or converter is needed.

    Raises:
        UsageError: `path` holds neither.
        UnfinishedError: the run has not ended, so there is no trained student yet.
        DamagedError: the weights are not those that were saved.
    """
    folder = find_image_tower(Path(path))
    value = read_sealed(folder / DESCRIPTION_NAME)
    weights = folder / WEIGHTS_NAME
    data = weights.read_bytes() if weights.exists() else b""
    if sha256_of(data) != value.get("weights_sha256"):
        raise DamagedError(f"{weights} is not the file that was saved: restore it from a copy, or train again")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise DamagedError(f"{weights} is no safetensors file ({error}): restore it from a copy") from error
    student = Student(TowerDescription.from_json(value.get("tower"), folder / DESCRIPTION_NAME), seed=0)
    load_all(student.tower, tensors, weights)
    return student.eval()


def read_about(path: str | Path) -> dict[str, Json]:
    """Returns what the image tower of a run or exported folder was trained from; errors as `load_image_tower`."""
    return read_sealed(find_image_tower(Path(path)) / DESCRIPTION_NAME)["about"]


def read_weights_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of the weights of a run or exported folder; errors as `load_image_tower`."""
    return read_sealed(find_image_tower(Path(path)) / DESCRIPTION_NAME)["weights_sha256"]


def find_image_tower(path: Path) -> Path:
    """Returns the folder with the two files: `path` itself, or `model` inside a run; errors as `load_image_tower`."""
    for folder in (path, path / _IN_RUN):
        if (folder / DESCRIPTION_NAME).exists():
            return folder
    if (path / "run.json").exists():
        raise UnfinishedError(f"run {path} has not ended, so it has no trained student: run `pipeline distill` again")
    raise UsageError(f"{path} holds no trained student (no {DESCRIPTION_NAME}): name a run or an exported folder")
