"""Teachers: the large dual encoders whose features are cached. One line in `TEACHERS` per kind."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from cache_schema.errors import UsageError, unknown_name
from cache_schema.recipe import IMPORTED
from stages.teachers import hf, open_clip, python_factory
from stages.teachers.base import PRECISIONS, Teacher, recipes_of

__all__ = ["PRECISIONS", "TEACHERS", "Teacher", "load_teacher", "load_text_tower", "recipes_of"]

TEACHERS: dict[str, Callable[..., Teacher]] = {
    "open_clip": open_clip.load,
    "hf": hf.load,
    "python": python_factory.load,
}
"""Kind -> load(rest, *, device, precision, base_folder, image_side), `rest` being what follows `kind:`."""


def load_teacher(
    specification: str, *, device: str = "cpu", precision: str = "float32", base_folder: Path | None = None
) -> Teacher:
    """Returns the teacher that `specification`, `kind:…`, names.

    Args:
        specification: as on the command line, or `Teacher.specification` of a loaded one.
        device: "auto", "cpu", "cuda" or "cuda:N"; never replaced by another one, but for "auto".
        precision: the precision of the forward pass: "float32", "bfloat16" or "float16".
        base_folder: relative paths and modules are looked up here; the working directory if not given.

    Raises:
        UsageError: something named does not exist; lists what does.
        EnvironmentProblem: the device, a package or the hub is not there.
        RefusedError: the weights are random, partly loaded, spoilt or made for another model.
    """
    return _load(specification, base_folder)(device=device, precision=precision)


def load_text_tower(
    specification: str, *, device: str = "cpu", precision: str = "float32", base_folder: Path | None = None
) -> Teacher:
    """Returns the same teacher for texts only, its image side perhaps dropped; otherwise as `load_teacher`."""
    return _load(specification, base_folder)(device=device, precision=precision, image_side=False)


def takes(specification: str, option: str, *, base_folder: Path | None = None) -> bool:
    """Returns whether the teacher lets others choose its `option`, "device" or "precision"; errors as `load_teacher`.

    Only a factory of the user's own may leave none.
    """
    kind, _, rest = specification.partition(":")
    return kind != "python" or python_factory.takes(rest, option, base_folder=base_folder or Path.cwd())


def _load(specification: str, base_folder: Path | None) -> Callable[..., Teacher]:
    kind, colon, rest = specification.partition(":")
    if not colon:
        raise UsageError(
            f"teacher {specification!r} does not say its kind: write {', '.join(f'{kind}:…' for kind in TEACHERS)}, "
            "for example open_clip:ViT-L-14/openai"
        )
    if kind == IMPORTED:
        raise UsageError(
            f"teacher {rest!r} is known only by features that `pipeline import` read, so nothing can be encoded with "
            "it: name with --teacher a model that can be loaded, or bring more features with `pipeline import`"
        )
    if kind not in TEACHERS:
        raise unknown_name("kind of teacher", kind, TEACHERS)
    return partial(TEACHERS[kind], rest, base_folder=base_folder or Path.cwd())
