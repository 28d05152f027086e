"""A teacher made by a user's own factory is held to the promises of the built-in ones."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_schema.errors import EnvironmentProblem, RefusedError, UsageError
from stages.images.preprocess import Preprocess
from stages.teachers import load_teacher
from stages.teachers.python_factory import PythonTeacher

SOURCE = """
import numpy as np

class Made:
    identity = {"name": "made", "version": "1", "files": {}}
    dim = 4
    logit_scale = 100.0
    preprocess = {"size": (8, 8), "mean": (0.5, 0.5, 0.5), "std": (1, 1, 1)}

    def encode_images(self, pixels):
        return np.ones((len(pixels), 4), np.float32)

    def encode_texts(self, texts):
        return np.ones((len(texts), 4), np.float32)

def make(**options):
    made = Made()
    made.options = options
    return made
"""
PIXELS = np.zeros((2, 3, 8, 8), np.float32)
numbers = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Returns write(source, more): the name of a fresh module in `tmp_path`, where the working directory is too."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def module(source: str = SOURCE, more: str = "") -> str:
        name = f"teacher_of_test_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(f"{source}\n{more}\n")
        return name

    return module


def load(rest: str, **how: Any) -> PythonTeacher:
    teacher = load_teacher(f"python:{rest}", **how)
    assert isinstance(teacher, PythonTeacher)
    return teacher


def test_a_factory_of_the_working_directory_makes_a_teacher(write: Callable[..., str]) -> None:
    teacher = load(f"{write()}:make")
    assert teacher.identity == {"kind": "python", "name": "made", "version": "1", "files": {}}
    assert (teacher.dim, teacher.logit_scale, teacher.logit_bias, teacher.context_length) == (4, 100.0, None, None)
    assert teacher.preprocess == Preprocess(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    assert teacher.encode_images(PIXELS).shape == teacher.encode_texts(["a", "b"]).shape == (2, 4)
    assert teacher.count_tokens(["a"]) is None
    assert teacher.token_ids(["a"]) is None


def test_what_the_object_has_beyond_the_needed_is_used(write: Callable[..., str]) -> None:
    more = """
from stages.images.preprocess import Preprocess
Made.logit_bias = -10
Made.context_length = np.int64(7)
Made.tokenizer = {"name": "words"}
Made.count_tokens = lambda self, texts: np.array([len(text) for text in texts])
Made.token_ids = lambda self, texts: [[1, 2] for text in texts]
Made.preprocess = Preprocess(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
"""
    teacher = load(f"{write(more=more)}:make")
    assert (teacher.logit_bias, teacher.context_length, teacher.tokenizer) == (-10.0, 7, {"name": "words"})
    assert teacher.count_tokens(["a", "bcd"]) == [1, 3]
    assert np.array_equal(teacher.token_ids(["a", "b"]), [[1, 2], [1, 2]])
    assert teacher.preprocess.interpolation == "bilinear"


def test_the_working_directory_comes_first_on_the_path(write: Callable[..., str], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    name = write()
    (elsewhere / f"{name}.py").write_text(SOURCE.replace('"version": "1"', '"version": "elsewhere"'))
    sys.path.insert(0, str(elsewhere))
    assert load(f"{name}:make").identity["version"] == "1"
    assert sys.path[0] == str(tmp_path)


def test_a_base_folder_stands_for_the_working_directory(write: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    name = write()
    (tmp_path / f"{name}.py").rename(tmp_path / "other" / f"{name}.py")
    with pytest.raises(UsageError, match=f"there is no module '{name}'"):
        load(f"{name}:make")
    assert load(f"{name}:make", base_folder=tmp_path / "other").identity["name"] == "made"


def test_a_file_hidden_by_a_module_of_the_same_name_is_refused(write: Callable[..., str], tmp_path: Path) -> None:
    name = write()
    load(f"{name}:make")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"{name}.py").write_text(SOURCE)
    (tmp_path / "itertools.py").write_text(SOURCE)
    with pytest.raises(UsageError, match=rf"other/{name}.py is hidden by the module .*rename the file"):
        load(f"{name}:make", base_folder=tmp_path / "other")
    with pytest.raises(UsageError, match=r"itertools.py is hidden by .* Python itself"):
        load("itertools:make")


def test_options_are_whole_numbers_decimals_truths_or_text(write: Callable[..., str]) -> None:
    given = {
        "a": ("3", 3),
        "b": ("-7", -7),
        "c": ("0.5", 0.5),
        "d": ("1e3", 1000.0),
        "e": ("true", True),
        "f": ("false", False),
        "g": ("True", "True"),
        "h": ("ViT-L-14", "ViT-L-14"),
        "i": ("", ""),
        "j": ("a%26b%3Dc%20d", "a&b=c d"),
        "k": ("0x10", "0x10"),
        "l": ("nan", "nan"),
        "m": ("inf", "inf"),
        "n": ("1_000", "1_000"),
        "o": ("x=y", "x=y"),
        "p": ("/some/path.pt", "/some/path.pt"),
    }
    query = "&".join(f"{name}={text}" for name, (text, _) in given.items())
    options = load(f"{write()}:make?{query}")._made.options
    assert options == {name: value for name, (_, value) in given.items()}
    assert {name: type(value) for name, value in options.items()} == {n: type(v) for n, (_, v) in given.items()}


@pytest.mark.parametrize("query", ["a", "a=1&a=2", "=1", "a-b=1", "a=1&", "&"])
def test_options_that_are_not_name_and_value_once_are_refused(query: str, write: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match="write each option once, as name=value"):
        load(f"{write()}:make?{query}")


def test_an_unknown_option_lists_the_known_ones_and_the_nearest(write: Callable[..., str]) -> None:
    name = write(more="def strict(*, width=3, depth=2): return Made()")
    with pytest.raises(UsageError, match=r"no option 'widht' \(did you mean 'width'\?\); known: width, depth"):
        load(f"{name}:strict?widht=4")
    with pytest.raises(UsageError, match="no option 'a'; known: none"):
        load(f"{write(more='def bare(): return Made()')}:bare?a=4")


def test_an_option_without_default_must_be_given(write: Callable[..., str]) -> None:
    name = write(more="def needs(weights): return Made()")
    with pytest.raises(UsageError, match=r"needs the option 'weights': add weights=VALUE after the \?"):
        load(f"{name}:needs")
    load(f"{name}:needs?weights=here")


def test_device_and_precision_reach_a_factory_that_takes_them(write: Callable[..., str]) -> None:
    more = "def on(device, precision):\n    made = make(device=device, precision=precision)\n    return made"
    name = write(more=more)
    made = load(f"{name}:on", device="cuda:99", precision="bfloat16")._made
    assert made.options == {"device": "cuda:99", "precision": "bfloat16"}
    with pytest.raises(UsageError, match="has the option 'device', which is not part of a teacher"):
        load(f"{name}:on?device=cpu", device="cuda")


@pytest.mark.parametrize("asked", [{"device": "cuda"}, {"precision": "float16"}])
def test_a_factory_that_takes_no_device_or_precision_only_runs_with_the_default(
    asked: dict[str, str], write: Callable[..., str]
) -> None:
    with pytest.raises(UsageError, match=f"takes no {next(iter(asked))}, so .* would have no effect"):
        load(f"{write()}:make", **asked)


@pytest.mark.parametrize("rest", ["", "module", "module:", ":make", "module:make:more", "a b:make", "module:1"])
def test_a_specification_of_another_form_is_refused(rest: str) -> None:
    with pytest.raises(UsageError, match=r"is not python:module:make\?option=value: correct it"):
        load(rest)


def test_a_missing_module_says_where_it_was_looked_for(write: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"there is no module 'no_such_module' in {tmp_path}"):
        load("no_such_module:make")
    with pytest.raises(UsageError, match=r"there is no module 'no_such_package' in"):
        load("no_such_package.part:make")


def test_a_module_that_needs_a_missing_one_is_an_environment_problem(write: Callable[..., str]) -> None:
    with pytest.raises(EnvironmentProblem, match="needs the module 'no_such_library': install it"):
        load(f"{write(more='import no_such_library')}:make")


def test_a_missing_function_names_the_nearest_one(write: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match=r"has no function 'mkae' \(did you mean 'make'\?\)"):
        load(f"{write()}:mkae")
    with pytest.raises(UsageError, match="has no function 'number'"):
        load(f"{write(more='number = 3')}:number")


@pytest.mark.parametrize("name", ["identity", "dim", "logit_scale", "preprocess", "encode_images", "encode_texts"])
def test_an_object_that_lacks_something_is_refused(name: str, write: Callable[..., str]) -> None:
    with pytest.raises(RefusedError, match=f"has no {name}: add"):
        load(f"{write(more=f'del Made.{name}')}:make")


IDENTITY = 'Made.identity = {{"name": "made", "version": "1", "files": {{}}, {}}}'


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("Made.identity = 'made'", "make it a dict with a name, a version and files"),
        ("Made.identity = {'name': 'made', 'files': {}}", "make it a dict with a name, a version and files"),
        ("Made.identity = {'name': 'made', 'version': 1, 'files': {}}", "make it a dict with a name, a version"),
        ("Made.identity = {'name': 'made', 'version': '1'}", "has files None"),
        ("Made.identity = {'name': 'made', 'version': '1', 'files': {'w.pt': 'abc'}}", "SHA-256"),
        ("Made.identity = {'name': 'made', 'version': '1', 'files': ['w.pt']}", "SHA-256"),
        (IDENTITY.format("'kind': 'open_clip'"), "'kind'"),
        (IDENTITY.format("'x': float('nan')"), "no JSON"),
        (IDENTITY.format("'x': object()"), "no JSON"),
        (IDENTITY.format("'x': np.float32(1)"), "no JSON"),
        ("Made.dim = 0", "has dim 0: it must be a whole number of at least 1"),
        ("Made.dim = 4.0", "has dim 4.0"),
        ("Made.dim = True", "has dim True"),
        ("Made.logit_scale = 0", "it must be positive"),
        ("Made.logit_scale = float('inf')", "it must be a finite number"),
        ("Made.logit_scale = 'large'", "has logit_scale 'large': it must be a finite number"),
        ("Made.logit_bias = float('nan')", "has logit_bias nan"),
        ("Made.context_length = 'long'", "has context_length 'long'"),
        ("Made.tokenizer = ['words']", "the tokenizer of .* is no JSON dict"),
        ("Made.tokenizer = {'cleaning': str.lower}", "the tokenizer of .* is no JSON dict"),
        ("Made.preprocess = {'size': (8, 8)}", "missing fields"),
        ("Made.preprocess = {'size': 8, 'mean': (0,) * 3, 'std': (1,) * 3}", "the preprocess of"),
        ("Made.preprocess = {'size': (8, 8), 'mean': (0,) * 3, 'std': (1,) * 3, 'colour': 1}", "unknown fields"),
        ("Made.preprocess = {'size': (8, 8), 'mean': (0,) * 3, 'std': (0,) * 3}", "std"),
        ("Made.preprocess = 8", "the preprocess of"),
        ("Made.paths = 'weights.pt'", "has paths 'weights.pt': make it a list"),
    ],
)
def test_an_object_with_something_impossible_is_refused(more: str, message: str, write: Callable[..., str]) -> None:
    with pytest.raises(RefusedError, match=message):
        load(f"{write(more=more)}:make")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("np.ones((2, 5))", r"gave shape \(2, 5\) for 2 inputs instead of \(2, 4\)"),
        ("np.ones((1, 4))", r"gave shape \(1, 4\)"),
        ("np.ones(4)", r"gave shape \(4,\)"),
        ("None", r"gave shape \(\)|no array"),
        ("[[1, 2, 3, 4], [1]]", "no array"),
        ("'text'", "gave a str that is no array"),
        ("__import__('torch').ones(2, 4, requires_grad=True)", r"no array .*tensor\.detach\(\)\.float\(\)\.cpu\(\)"),
    ],
)
@pytest.mark.parametrize("method", ["encode_images", "encode_texts"])
def test_features_of_another_shape_or_kind_are_refused(
    method: str, result: str, message: str, write: Callable[..., str]
) -> None:
    teacher = load(f"{write(more=f'Made.{method} = lambda self, inputs: {result}')}:make")
    with pytest.raises(RefusedError, match=rf"{method} of python:.*{message}"):
        teacher.encode_images(PIXELS) if method == "encode_images" else teacher.encode_texts(["a", "b"])


def test_features_of_another_dtype_become_float32(write: Callable[..., str]) -> None:
    teacher = load(f"{write(more='Made.encode_texts = lambda self, texts: [[1, 2, 3, 4.5]] * len(texts)')}:make")
    features = teacher.encode_texts(["a"])
    assert (features.dtype, features.tolist()) == (np.float32, [[1, 2, 3, 4.5]])


def test_files_are_the_module_where_nothing_was_loaded(write: Callable[..., str], tmp_path: Path) -> None:
    name = write()
    assert list(load(f"{name}:make").files) == [str(tmp_path / f"{name}.py")]


def test_files_are_unknown_where_the_object_loaded_some_and_does_not_say_where(write: Callable[..., str]) -> None:
    more = "Made.identity = {'name': 'made', 'version': '1', 'files': {'w.pt': '0' * 64}}"
    assert load(f"{write(more=more)}:make").files == {}


def test_files_are_the_module_and_the_paths_that_the_object_names(write: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"12345")
    more = "Made.identity = {'name': 'made', 'version': '1', 'files': {'w.pt': '0' * 64}}\nMade.paths = ['w.pt']"
    name = write(more=more)
    files = load(f"{name}:make").files
    assert list(files) == sorted([str(tmp_path / f"{name}.py"), str(tmp_path / "w.pt")])
    assert files[str(tmp_path / "w.pt")]["size_bytes"] == 5
    (tmp_path / "w.pt").unlink()
    with pytest.raises(EnvironmentProblem, match=r"cannot read .*w\.pt"):
        load(f"{name}:make")


def test_a_later_change_of_the_object_does_not_change_the_identity(write: Callable[..., str]) -> None:
    teacher = load(f"{write()}:make")
    teacher._made.identity["version"] = "2"
    assert teacher.identity["version"] == "1"
