"""Loads models to evaluate, an image side and a text side each: runs, checkpoints, exported folders and teachers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import MismatchError, UsageError
from cache_schema.recipe import IMPORTED
from stages.device import torch_device
from stages.export.model_folder import find_exported, load_trained, require_probes
from stages.export.open_clip import CONFIG_NAME
from stages.images.preprocess import Preprocess
from stages.runs.reference import find_checkpoint
from stages.students.encoder import StudentEncoder
from stages.students.saved import read_about
from stages.teachers import TEACHERS, Teacher, load_teacher, load_text_tower
from stages.teachers.held import load_held


class ImageEncoder(Protocol):
    """The image side of a student or teacher."""

    @property
    def preprocess(self) -> Preprocess: ...

    def encode_images(self, pixels_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns features_BD, not necessarily unit norm."""
        ...


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate.

    Attributes:
        name: as given.
        images: its image side.
        texts: its text side; a student's is its teacher's.
        learnt_from: specification of the teacher that a student learnt from; None for a teacher.
        folder: where the probes of a student's teacher are: its model folder, or its run; None for a teacher.
    """

    name: str
    images: ImageEncoder
    texts: Teacher
    learnt_from: str | None = None
    folder: Path | None = None


def load_model(name: str, *, device: str, teacher: str | None = None) -> EvaluatedModel:
    """Returns the model called `name`: a run, `RUN@STEP`, an exported folder, or else a teacher specification.

    The teacher's text tower comes from the exported pair where there is one, else from the specification that the run
    recorded; either way it must reproduce the probes of the cache that the student learnt from. A student of imported
    features has neither: the text tower of `teacher`, when given, is taken on the caller's word.

    Raises:
        UsageError: there is neither such a folder, checkpoint nor kind of teacher, or a student of imported features
            comes without a `teacher`.
        UnfinishedError: the run has not ended; names its newest checkpoint.
        MismatchError: the teacher found is not the one that the student learnt from.
        PipelineError: it cannot be loaded.
    """
    path = Path(name)
    reference = find_checkpoint(name)
    if reference is not None:
        specification = reference.record().about["teacher"]["specification"]
        return _student_model(name, reference.folder.root, reference.folder.model, specification, device, teacher)
    if not path.exists():
        if name.partition(":")[0] not in TEACHERS:
            raise UsageError(
                f"model {name!r} is neither a folder nor a teacher ({', '.join(f'{kind}:…' for kind in TEACHERS)}): "
                "name a run, an exported folder, a checkpoint as RUN@STEP, or a teacher"
            )
        whole = load_held(lambda: load_teacher(name, device=device))
        return EvaluatedModel(name, whole, whole)
    if (path / CONFIG_NAME).exists() and not (path / "image_tower.json").exists():
        whole = load_held(lambda: load_teacher(f"open_clip:local-dir:{path.absolute()}", device=device))
        return EvaluatedModel(name, whole, whole)
    folder = find_exported(path)
    return _student_model(name, folder, folder, read_about(folder)["teacher"]["specification"], device, teacher)


def _student_model(
    name: str, folder: Path, pair: Path, learnt_from: str, device: str, teacher: str | None
) -> EvaluatedModel:
    """Returns the student called `name`, whose teacher's probes are in `folder`, and whose open_clip pair in `pair`."""
    images = StudentEncoder(load_trained(name), device=torch_device(device))
    if learnt_from.startswith(f"{IMPORTED}:"):
        return EvaluatedModel(name, images, _trusted_texts(name, learnt_from, teacher, images, device), None, folder)
    has_pair = (pair / CONFIG_NAME).exists()
    of_texts = f"open_clip:local-dir:{pair.absolute()}" if has_pair else learnt_from
    texts = load_held(lambda: load_text_tower(of_texts, device=device))
    require_probes(texts, "text", folder, device=device)
    return EvaluatedModel(name, images, texts, learnt_from, folder)


def _trusted_texts(name: str, learnt_from: str, teacher: str | None, images: StudentEncoder, device: str) -> Teacher:
    """Returns the text tower of `teacher` for a student of imported features, which no probes can tell from another."""
    if teacher is None:
        raise UsageError(
            f"model {name} learnt from features that were imported ({learnt_from}), whose text tower nobody recorded: "
            "name the model that made them with --teacher"
        )
    texts = load_held(lambda: load_text_tower(teacher, device=device))
    if texts.dim != images.student.description.dim:
        raise MismatchError(
            f"teacher {teacher} has features of width {texts.dim}, model {name} learnt from ones of width "
            f"{images.student.description.dim}: name the model that made them with --teacher"
        )
    return texts
