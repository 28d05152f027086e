"""Evaluates a model: zero-shot measures on labelled pictures, and agreement with a teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import PipelineError
from cache_schema.json_file import Json
from cache_schema.progress import Progress
from stages.device import chosen_device, num_decoders
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.data import EvaluationSet, open_evaluation_set
from stages.evaluate.encode import LabelledFeatures, encode_set
from stages.evaluate.metrics import METRICS, top1
from stages.evaluate.models import EvaluatedModel, load_model
from stages.export.model_folder import require_probes
from stages.teachers import Teacher, load_teacher
from stages.teachers.class_vectors import class_vectors, count_cut_prompts
from stages.teachers.held import load_held
from stages.teachers.probes import Probes, compute_probes

__all__ = ["EvaluateConfig", "SeenTeachers", "evaluate_model"]

_SHOWN_KEYS = 10


@dataclass(frozen=True)
class SeenClasses:
    """The classes as a text tower sees them, and that tower, which is known again by what it makes of the probes."""

    texts: Teacher
    class_KD: NDArray[np.float32]

    @cached_property
    def probes(self) -> Probes:
        """Returns what the tower makes of the probe sentences."""
        return compute_probes(self.texts, "text")


@dataclass(frozen=True)
class SeenTeacher:
    """A loaded teacher, what it made of the pictures (features image_ND) and of the classes (scores_NK)."""

    teacher: Teacher
    encoded: LabelledFeatures
    scores_NK: NDArray[np.float32]
    classes: SeenClasses


SeenTeachers = dict[str, SeenTeacher]
"""Specification -> teacher, for evaluating several models of one teacher on one set without encoding it anew."""


def evaluate_model(
    config: EvaluateConfig,
    *,
    seen_teachers: SeenTeachers | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> dict[str, Json]:
    """Returns the zero-shot measures of `config.model`, and its agreement with a teacher.

    Args:
        config: what is asked.
        seen_teachers: filled with the teachers that this call needs, and looked into before one is loaded. For calls
            with the same data, device and batch size.
        progress: called after every batch of pictures.
        notice: called with a sentence about anything a person should know.

    Returns:
        JSON: `model`, `data`, `num_images` (evaluated), `num_unreadable` with the first keys in `unreadable`,
        `num_classes`, `zero_shot_top1`, `mean_per_class_recall`, `chance`, `largest_class`, and, None without a teacher
        to compare with, `teacher`, `teacher_top1`, `agreement_top1` (share of pictures with the same best class) and
        `mean_cosine` (between the two features of a picture; None where the widths differ).

    Raises:
        UsageError: no such model, or the data lacks a file of its layout.
        DamagedError: the data, or the model's files, are damaged.
        MismatchError: the teacher found is not the one that the student learnt from.
        PipelineError: a model cannot be loaded.
    """
    import torch

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    say = notice or _ignore
    chosen_device(config.device, f"{config.model} computes", say)
    seen_teachers = {} if seen_teachers is None else seen_teachers
    data = open_evaluation_set(config.data)
    model = load_model(config.model, device=config.device, teacher=config.teacher)
    if model.folder is not None and model.learnt_from is None:
        say(f"{config.model} learnt from imported features: that {config.teacher} made them is taken on your word")
    for sentence in data.notices():
        say(sentence)
    encoded = _encode(model.images, data, config, progress, "pictures")
    classes = _see_classes(model.texts, [seen.classes for seen in seen_teachers.values()], data, config)
    if cut := count_cut_prompts(model.texts, data.prompts()):
        say(f"{cut:,} prompts are longer than the {model.texts.context_length} tokens that the text tower reads")
    if encoded.unreadable:
        shown = ", ".join(f"{key} ({status})" for key, status in list(encoded.unreadable.items())[:_SHOWN_KEYS])
        say(f"{len(encoded.unreadable):,} pictures of {data.path} could not be read and were left out: {shown}")
    scores_NK = encoded.image_ND @ classes.class_KD.T
    if isinstance(model.images, Teacher):
        seen_teachers[model.images.specification] = SeenTeacher(model.images, encoded, scores_NK, classes)
    labels_N = encoded.labels_N
    return {
        "model": config.model,
        "data": str(config.data),
        "num_images": len(labels_N),
        "num_unreadable": len(encoded.unreadable),
        "unreadable": list(encoded.unreadable)[:_SHOWN_KEYS],
        "num_classes": len(data.class_names),
        **{name: metric(scores_NK, labels_N) for name, metric in METRICS.items()},
        "chance": 1 / len(data.class_names),
        "largest_class": float(np.bincount(labels_N).max() / len(labels_N)),
        **_compare(model, encoded, scores_NK, classes, data, config, seen_teachers, progress, say),
    }


def _compare(
    model: EvaluatedModel,
    encoded: LabelledFeatures,
    scores_NK: Any,
    classes: SeenClasses,
    data: EvaluationSet,
    config: EvaluateConfig,
    seen_teachers: SeenTeachers,
    progress: Progress | None,
    say: Callable[[str], None],
) -> dict[str, Json]:
    teacher = _teacher_for(model, config, seen_teachers, say)
    if teacher is None:
        return dict.fromkeys(("teacher", "teacher_top1", "agreement_top1", "mean_cosine"))
    if teacher.specification not in seen_teachers:
        of_teacher = _encode(teacher, data, config, progress, "pictures by the teacher")
        theirs = _see_classes(teacher, [classes], data, config)
        scores = of_teacher.image_ND @ theirs.class_KD.T
        seen_teachers[teacher.specification] = SeenTeacher(teacher, of_teacher, scores, theirs)
    seen = seen_teachers[teacher.specification]
    common = sorted(set(encoded.keys) & set(seen.encoded.keys))
    ours_N, theirs_N = (_places(features.keys, common) for features in (encoded, seen.encoded))
    same = scores_NK.argmax(axis=1)[ours_N] == seen.scores_NK.argmax(axis=1)[theirs_N]
    cosine = None
    if encoded.image_ND.shape[1] == seen.encoded.image_ND.shape[1]:
        cosine = float((encoded.image_ND[ours_N] * seen.encoded.image_ND[theirs_N]).sum(axis=1).mean())
    return {
        "teacher": teacher.specification,
        "teacher_top1": top1(seen.scores_NK, seen.encoded.labels_N),
        "agreement_top1": float(same.mean()),
        "mean_cosine": cosine,
    }


def _see_classes(
    texts: Teacher, known: Sequence[SeenClasses], data: EvaluationSet, config: EvaluateConfig
) -> SeenClasses:
    """Returns the classes as `texts` sees them: as a `known` tower saw them that is the same, bit for bit, on probes.

    A student's text tower is its teacher's, and there may be thousands of prompts.
    """
    seen = SeenClasses(texts, np.empty((0, texts.dim), np.float32))
    for other in known:
        if other.texts.dim == texts.dim and _are_equal(other.probes, seen.probes):
            return replace(seen, class_KD=other.class_KD)
    return replace(seen, class_KD=class_vectors(texts, data.prompts(), batch_size=config.batch_size))


def _are_equal(ours: Probes, theirs: Probes) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def _teacher_for(
    model: EvaluatedModel, config: EvaluateConfig, seen_teachers: SeenTeachers, say: Callable[[str], None]
) -> Teacher | None:
    """Returns the teacher to compare with: the one asked for, or the one learnt from if it can be had."""
    if not config.compare:
        return None

    def load(specification: str) -> Teacher:
        seen = seen_teachers.get(specification)
        if seen is not None:
            return seen.teacher
        return load_held(lambda: load_teacher(specification, device=config.device))

    if config.teacher is not None:
        return load(config.teacher)
    if model.learnt_from is None or model.folder is None:
        return None
    try:
        teacher = load(model.learnt_from)
        require_probes(teacher, "image", model.folder, device=config.device)
    except PipelineError as error:
        say(f"no comparison with the teacher, because it could not be loaded ({error})")
        return None
    return teacher


def _encode(
    images: Any, data: EvaluationSet, config: EvaluateConfig, progress: Progress | None, unit: str
) -> LabelledFeatures:
    total = data.count_pictures()

    def seen(done: int) -> None:
        if progress is not None:
            progress(done, total, unit)

    decoders = num_decoders(config.decode_workers, config.device)
    return encode_set(images, data, batch_size=config.batch_size, decode_workers=decoders, progress=seen)


def _places(keys: tuple[str, ...], wanted: list[str]) -> list[int]:
    place_of = {key: place for place, key in enumerate(keys)}
    return [place_of[key] for key in wanted]


def _ignore(sentence: str) -> None:
    """Stands for a `notice` that nobody gave."""
