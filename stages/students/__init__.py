"""Students: the small image towers that are trained. One line in `STUDENTS` per kind.

A student has no text tower: its text features are the teacher's, from the cache. Every kind gives an open_clip
`vision_cfg`, so that any trained student is an open_clip model.
"""

from collections.abc import Callable

from cache_schema.errors import UsageError, unknown_name
from stages.students import open_clip, timm
from stages.students.base import Student, TowerDescription
from stages.students.saved import load_image_tower, save_image_tower

__all__ = ["STUDENTS", "Student", "TowerDescription", "build_student", "load_image_tower", "save_image_tower"]

STUDENTS: dict[str, Callable[..., TowerDescription]] = {
    "open_clip": open_clip.describe,
    "timm": timm.describe,
}
"""Kind -> describe(rest, dim, *, quick_gelu), `rest` being what follows `kind:`."""


def build_student(specification: str, dim: int, *, seed: int, quick_gelu: bool | None = None) -> Student:
    """Returns the student that `specification`, `kind:name?option=value`, names.

    Args:
        specification: for example `open_clip:ViT-B-32` or `timm:resnet10t?image_size=64`.
        dim: width of its features, the teacher's.
        seed: the seed of its random weights; the same seed gives the same weights.
        quick_gelu: activation of open_clip's own transformers where the specification does not say; None for that of
            the model configuration.

    Raises:
        UsageError: unknown kind, name or option, or no such tower can be built; names the nearest.
    """
    kind, colon, rest = specification.partition(":")
    if not colon:
        raise UsageError(
            f"student {specification!r} does not say its kind: write {', '.join(f'{kind}:…' for kind in STUDENTS)}, "
            "for example open_clip:ViT-B-32"
        )
    if kind not in STUDENTS:
        raise unknown_name("kind of student", kind, STUDENTS)
    return Student(STUDENTS[kind](rest, dim, quick_gelu=quick_gelu), seed=seed)
