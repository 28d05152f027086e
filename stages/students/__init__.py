"""Students: the small image towers that are trained. One line in `STUDENTS` per kind.

A student has no text tower: its text features are the teacher's, from the cache. Every kind gives an open_clip
`vision_cfg`, so that any trained student is an open_clip model.
"""

from collections.abc import Callable
from pathlib import Path

from cache_schema.errors import UsageError, unknown_name
from stages.students import open_clip, timm
from stages.students.base import Student, TowerDescription
from stages.students.saved import load_image_tower, save_image_tower
from stages.students.starts import Start, begin_with, described_for

__all__ = ["STARTS", "STUDENTS", "Student", "TowerDescription", "build_student", "load_image_tower", "save_image_tower"]

STUDENTS: dict[str, Callable[..., TowerDescription]] = {
    "open_clip": open_clip.describe,
    "timm": timm.describe,
}
"""Kind -> describe(rest, dim, *, quick_gelu), `rest` being what follows `kind:`."""

STARTS: dict[str, Callable[[str, str | None], Start | None]] = {
    "open_clip": open_clip.start_of,
    "timm": timm.start_of,
}
"""Kind -> start_of(rest, init), the weights that either names; a kind without published weights has none."""


def build_student(
    specification: str,
    dim: int,
    *,
    seed: int,
    quick_gelu: bool | None = None,
    init: "Path | Start | None" = None,
    notice: Callable[[str], None] | None = None,
) -> Student:
    """Returns the student that `specification`, `kind:name?option=value`, names.

    Args:
        specification: for example `open_clip:ViT-B-32` or `timm:resnet10t?image_size=64`.
        dim: width of its features, the teacher's.
        seed: the seed of its random weights; the same seed gives the same weights.
        quick_gelu: activation of open_clip's own transformers where the specification does not say; None for that of
            the model configuration.
        init: weights to begin with, a checkpoint or those of another student; they stand in place of `pretrained`.
        notice: called with a sentence about the weights it begins with.

    Raises:
        UsageError: unknown kind, name, option or weights, or no such tower can be built; names the nearest.
        MismatchError: the weights do not fit it.
        PipelineError: the weights cannot be had.
    """
    kind, colon, rest = specification.partition(":")
    if not colon:
        raise UsageError(
            f"student {specification!r} does not say its kind: write {', '.join(f'{kind}:…' for kind in STUDENTS)}, "
            "for example open_clip:ViT-B-32"
        )
    if kind not in STUDENTS:
        raise unknown_name("kind of student", kind, STUDENTS)
    description = STUDENTS[kind](rest, dim, quick_gelu=quick_gelu)
    if isinstance(init, Path) and kind not in STARTS:
        raise UsageError(f"student {specification} cannot begin with the weights of a file: name another student")
    asked = None if init is None else str(init)
    start = init if isinstance(init, Start) else STARTS[kind](rest, asked) if kind in STARTS else None
    if start is None:
        return Student(description, seed=seed)
    student = Student(described_for(description, start), seed=seed)
    said = begin_with(student, start)
    student.started_from = start.sha256
    if notice is not None:
        notice(said)
    return student
