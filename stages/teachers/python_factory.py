"""The `python:` teacher: whatever a user's own factory returns, held to the same promises as the built-in ones.

`python:module:make?option=value&other=2` imports `module` with the working directory first on `sys.path` and calls
`make(option="value", other=2)`. The object needs

- `identity`: JSON dict with a `name`, a `version` and `files` (name -> SHA-256 of everything it loaded; {} if nothing),
- `dim`, `logit_scale`, and optionally `logit_bias`,
- `preprocess`: a `Preprocess`, or a dict of its fields,
- `encode_images(pixels_BCHW)` and `encode_texts(list[str])`, each giving features_BD,

and may have `context_length`, `count_tokens(texts)`, `token_ids(texts)`, `tokenizer` (JSON dict) and `paths` (the files
it loaded, so that a rerun with nothing to do need not load them again). Importing torch is left to the factory.
"""

import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import EnvironmentProblem, RefusedError, UsageError, nearest
from cache_schema.json_file import Json, canonical_json, parse_json
from stages.device import AUTO, this_machine
from stages.images.preprocess import Preprocess
from stages.teachers.base import PRECISIONS, Teacher, states_of

_NEEDED = ("identity", "dim", "logit_scale", "preprocess", "encode_images", "encode_texts")


class PythonTeacher(Teacher):
    """A user's object, checked once when wrapped and then at every batch.

    Raises:
        RefusedError: the object lacks something, above all an identity, or gives something impossible.
    """

    def __init__(self, made: Any, specification: str, module_file: str | None = None) -> None:
        missing = [name for name in _NEEDED if not hasattr(made, name)]
        if missing:
            raise RefusedError(
                f"the teacher made by {specification} has no {', '.join(missing)}: add them to what the factory returns"
            )
        self._made = made
        self.specification = specification
        self.identity = {**_checked_identity(made.identity, specification), "kind": "python"}
        self.files = states_of(_paths_of(made, module_file, specification))
        self.dim = _checked_count(made.dim, "dim", specification)
        self.logit_scale = _checked_number(made.logit_scale, "logit_scale", specification)
        if self.logit_scale <= 0:
            raise RefusedError(
                f"{specification} has logit_scale {self.logit_scale}: it must be positive (CLIP has 100)"
            )
        bias = getattr(made, "logit_bias", None)
        self.logit_bias = None if bias is None else _checked_number(bias, "logit_bias", specification)
        self.preprocess = _checked_preprocess(made.preprocess, specification)
        length = getattr(made, "context_length", None)
        self.context_length = None if length is None else _checked_count(length, "context_length", specification)
        self.tokenizer = _checked_json(getattr(made, "tokenizer", {}), f"the tokenizer of {specification}")

    def encode_images(self, pixels_BCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._checked(self._made.encode_images(pixels_BCHW), len(pixels_BCHW), "encode_images")

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        return self._checked(self._made.encode_texts(texts), len(texts), "encode_texts")

    def count_tokens(self, texts: list[str]) -> list[int] | None:
        if not hasattr(self._made, "count_tokens"):
            return None
        return [int(count) for count in self._made.count_tokens(texts)]

    def token_ids(self, texts: list[str]) -> NDArray[np.int64] | None:
        return np.asarray(self._made.token_ids(texts), np.int64) if hasattr(self._made, "token_ids") else None

    def _checked(self, features: Any, num_rows: int, method: str) -> NDArray[np.float32]:
        try:
            features_BD = np.asarray(features, np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RefusedError(
                f"{method} of {self.specification} gave a {type(features).__name__} that is no array ({error}): return "
                "a NumPy array; of a torch tensor, tensor.detach().float().cpu().numpy()"
            ) from error
        if features_BD.shape != (num_rows, self.dim):
            raise RefusedError(
                f"{method} of {self.specification} gave shape {features_BD.shape} for {num_rows} inputs instead of "
                f"({num_rows}, {self.dim}): correct the factory's object"
            )
        return features_BD


def load(rest: str, *, device: str, precision: str, base_folder: Path, image_side: bool = True) -> PythonTeacher:
    """Returns the teacher that `rest`, a specification without its `python:`, makes.

    Option values are taken as whole numbers, decimal numbers, `true` or `false` where they are spelt like one, and as
    text otherwise; `%26` and the like stand for reserved characters. A factory that accepts `device` or `precision` is
    given them; one that does not can only be run with the default ones. They are no options of the specification. The
    device "auto" is a GPU for a factory that accepts a device, where there is one.

    Raises:
        UsageError: the specification, module, function or an option is wrong.
        EnvironmentProblem: the module needs a package that is not installed.
        RefusedError: what the factory returned is not a teacher, above all when it has no identity.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}: use one of {', '.join(PRECISIONS)}")
    make, options, module_name = _parsed(rest, base_folder)
    specification = f"python:{rest}"
    if device == AUTO:
        device = this_machine().device(AUTO) if _takes(make, "device") else "cpu"
    made = make(**_accepted(make, options, device, precision, specification))
    return PythonTeacher(made, specification, getattr(sys.modules[module_name], "__file__", None))


def takes(rest: str, option: str, *, base_folder: Path) -> bool:
    """Returns whether the factory named by `rest`, as for `load`, accepts `option`, "device" or "precision".

    Raises: as `load`.
    """
    return _takes(_parsed(rest, base_folder)[0], option)


def _takes(make: Callable[..., Any], option: str) -> bool:
    parameter = inspect.signature(make).parameters.get(option)
    return parameter is not None and parameter.kind in _NAMED


def _parsed(rest: str, base_folder: Path) -> tuple[Callable[..., Any], dict[str, Any], str]:
    """Returns the factory, its options and the name of its module."""
    specification = f"python:{rest}"
    path, _, query = rest.partition("?")
    module_name, _, function_name = path.partition(":")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", module_name) or not function_name.isidentifier():
        raise UsageError(f"teacher {specification!r} is not python:module:make?option=value: correct it")
    options = _options_in(query, specification)
    return _factory(module_name, function_name, base_folder, specification), options, module_name


def _options_in(query: str, specification: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in query.split("&") if query else []:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier() or name in options:
            raise UsageError(
                f"teacher {specification!r} has the option {item!r}: write each option once, as name=value"
            )
        options[name] = _literal(unquote(value))
    return options


def _literal(text: str) -> int | float | bool | str:
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d{1,3})?", text):
        return float(text)
    return {"true": True, "false": False}.get(text, text)


def _factory(module_name: str, function_name: str, folder: Path, specification: str) -> Callable[..., Any]:
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(
                f"teacher {specification!r}: there is no module {error.name!r} in {folder} or among the installed "
                "packages: run from the folder that holds it, or install it"
            ) from error
        raise EnvironmentProblem(
            f"teacher {specification!r}: {module_name} needs the module {error.name!r}: install it"
        ) from error
    _refuse_namesake(module, folder, specification)
    make = getattr(module, function_name, None)
    if not callable(make):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UsageError(
            f"teacher {specification!r}: {module_name} has no function {function_name!r}"
            f"{nearest(function_name, known)}: name a function of that module"
        )
    return make


def _refuse_namesake(module: ModuleType, folder: Path, specification: str) -> None:
    """Refuses a module that Python had already imported from elsewhere when `folder` holds one of that name."""
    top = module.__name__.partition(".")[0]
    here = [path for path in (folder / top / "__init__.py", folder / f"{top}.py") if path.is_file()]
    there = getattr(sys.modules[top], "__file__", None)
    if here and (there is None or not here[0].samefile(there)):
        raise UsageError(
            f"teacher {specification!r}: {here[0]} is hidden by the module {top!r} already imported from "
            f"{there or 'Python itself'}: rename the file"
        )


def _accepted(
    make: Callable[..., Any], options: dict[str, Any], device: str, precision: str, specification: str
) -> dict[str, Any]:
    """Returns the arguments for `make`, after checking them against its signature."""
    parameters = inspect.signature(make).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [name for name, parameter in parameters.items() if parameter.kind in _NAMED]
    for name, value, default in (("device", device, "cpu"), ("precision", precision, PRECISIONS[0])):
        if name in options:
            raise UsageError(
                f"teacher {specification!r} has the option {name!r}, which is not part of a teacher: drop it, and "
                f"choose the {name} of the whole run instead"
            )
        if name in known:
            options = {**options, name: value}
        elif value != default:
            raise UsageError(
                f"teacher {specification!r} takes no {name}, so {name} {value!r} would have no effect: give its "
                f"factory a parameter {name}, or drop the option"
            )
    unknown = [name for name in options if name not in known]
    if unknown and not takes_any:
        raise UsageError(
            f"teacher {specification!r}: its factory has no option {unknown[0]!r}{nearest(unknown[0], known)}; "
            f"known: {', '.join(known) or 'none'}"
        )
    unset = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in options]
    if unset:
        raise UsageError(
            f"teacher {specification!r}: its factory needs the option {unset[0]!r}: add {unset[0]}=VALUE after the ?"
        )
    return options


_NAMED: Sequence[Any] = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _checked_identity(identity: Any, specification: str) -> dict[str, Json]:
    where = f"the identity of {specification}"
    if not isinstance(identity, dict) or not all(isinstance(identity.get(name), str) for name in ("name", "version")):
        raise RefusedError(f"{where} is {identity!r:.80}: make it a dict with a name, a version and files")
    if "kind" in identity:
        raise RefusedError(f"{where} has a 'kind', which is set to 'python' for it: call yours otherwise")
    files = identity.get("files")
    if not isinstance(files, dict) or not all(re.fullmatch(r"[0-9a-f]{64}", str(value)) for value in files.values()):
        raise RefusedError(
            f"{where} has files {files!r:.80}: make it a dict from file name to SHA-256 (64 hexadecimal digits) of "
            "everything that the teacher loads, {} if it loads nothing"
        )
    return _checked_json(identity, where)


def _checked_json(value: Any, where: str) -> dict[str, Json]:
    try:
        if not isinstance(value, dict):
            raise TypeError(f"it is a {type(value).__name__}")
        # Stored as a file would be, so that a later change of the user's object changes nothing.
        return dict(parse_json(canonical_json(value), where))
    except (TypeError, ValueError) as error:
        raise RefusedError(f"{where} is no JSON dict ({error}): keep to strings, numbers, lists and dicts") from error


def _paths_of(made: Any, module_file: str | None, specification: str) -> list[Path]:
    """Returns the files that decide the identity; none when the object loaded files and does not say which."""
    paths = getattr(made, "paths", None if made.identity["files"] else ())
    if isinstance(paths, str | bytes) or not (paths is None or isinstance(paths, Iterable)):
        raise RefusedError(f"{specification} has paths {paths!r:.80}: make it a list of the files that it loaded")
    if paths is None or module_file is None:
        return []
    return [Path(os.path.abspath(path)) for path in (module_file, *paths)]


def _checked_count(value: Any, name: str, specification: str) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise RefusedError(f"{specification} has {name} {value!r:.40}: it must be a whole number of at least 1")
    return int(value)


def _checked_number(value: Any, name: str, specification: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RefusedError(f"{specification} has {name} {value!r:.40}: it must be a finite number")
    return number


def _checked_preprocess(value: Any, specification: str) -> Preprocess:
    if isinstance(value, Preprocess):
        return value
    defaults = {"interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    try:
        return Preprocess.from_json({**defaults, **value})
    except (TypeError, ValueError) as error:
        raise RefusedError(
            f"the preprocess of {specification} is none ({error}): give a stages.images Preprocess or its fields"
        ) from error
