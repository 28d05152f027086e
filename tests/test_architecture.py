"""The walls of the house, read from the sources: who may import whom, who may write, who may swallow an error."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = ("cache_schema", "stages", "pipeline")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 350

# Package -> what it never imports, not even inside a function.
FORBIDDEN = {
    "cache_schema": {"torch", "open_clip", "timm", "faiss", "ray", "click", "rich", "stages", "pipeline"},
    "stages": {"ray", "click", "rich", "pipeline"},
    "pipeline": set(),
}
RAY_FILES = {"pipeline/ray_cluster.py", "pipeline/ray_host.py", "pipeline/ray_train.py"}
# Decode workers and fault tests import these, and must stay small and fast.
WITHOUT_TORCH = tuple(
    f"stages/{name}" for name in ("sources/", "decode", "prepare", "preprocess", "views", "extract", "import")
)
HEAVY = ("torch", "ray", "faiss", "zarr", "pyarrow", "open_clip", "timm")

EVERYTHING = {"everything", "Exception", "BaseException"}
MAY_CATCH_EVERYTHING = {"stages/decode.py", "stages/decode_child.py", "stages/decode_pool.py", "pipeline/executor.py"}
# Ray itself raises a bare Exception when it cannot start.
MAY_CATCH_EVERYTHING |= {"pipeline/ray_cluster.py"}
MAY_WRITE = {"cache_schema/atomic.py"}
# What else may write: the lock's guard file, the null device, FAISS into the path that `atomic.publish_with` hands it,
# and TensorBoard's own log. Encoders that write to a `buffer` in memory write no file.
EXCEPTIONS = {
    "cache_schema/lock.py": "os.open",
    "pipeline/report.py": "os.open",
    "stages/index.py": "load_faiss().write_index",
    "stages/training_log.py": "SummaryWriter",
}
MODULES_WITH_PICKLE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
WRITING_METHODS = {"write_text", "write_bytes", "save_file", "save_pretrained", "SummaryWriter"}
WRITING_METHODS |= {"write_table", "write_index", "save_array", "savez", "savez_compressed"}
WRITING_FUNCTIONS = {"np.save", "numpy.save", "torch.save", "zarr.save"}


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the top-level package of every import in `tree`, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def imported_at_module_level(path: Path) -> set[str]:
    """Returns the full names of the modules that importing `path` imports directly."""
    names: set[str] = set()
    for node in executed_on_import(parse(path).body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def executed_on_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from executed_on_import(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from executed_on_import(handler.body)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yields every call in `tree` with the dotted name that is called, as far as it is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=str)
def test_packages_import_in_one_direction(path: Path) -> None:
    wrong = FORBIDDEN[path.parts[0]] & set(imported(parse(path)))
    assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_ray_is_imported_only_by_its_executors(path: Path) -> None:
    assert "ray" not in set(imported(parse(path))) or str(path) in RAY_FILES


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_heavy_is_imported_with_a_module_that_should_be_light(path: Path) -> None:
    direct = {name.partition(".")[0] for name in imported_at_module_level(path)}
    if str(path).startswith(WITHOUT_TORCH) or path.parts[0] == "pipeline":
        assert not direct & {"torch", "torchvision", "open_clip", "timm", "ray", "faiss"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_has_one_subject_and_at_most_350_lines(path: Path) -> None:
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_error_is_caught_only_where_it_becomes_a_value(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = getattr(node.type, "elts", [node.type])
        too_much = {ast.unparse(kind) if kind else "everything" for kind in kinds} & EVERYTHING
        assert not too_much or str(path) in MAY_CATCH_EVERYTHING, f"{path}:{node.lineno} catches {too_much}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_atomic_opens_files_for_writing(path: Path) -> None:
    if str(path) in MAY_WRITE:
        return
    for name, call in calls(parse(path)):
        where = f"{path}:{call.lineno} {ast.unparse(call)[:80]}"
        to_memory = "buffer" in {ast.unparse(value) for value in (*call.args, *(k.value for k in call.keywords))}
        if to_memory or EXCEPTIONS.get(str(path)) == name:
            continue
        last = name.split(".")[-1]
        assert last not in WRITING_METHODS and name not in WRITING_FUNCTIONS, where
        if name == "os.open":
            assert not {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND"} & set(re.findall(r"O_\w+", where)), where
        elif last == "open":
            assert not set(open_mode(call, is_method=name != "open")) & set("wax+"), where


def open_mode(call: ast.Call, *, is_method: bool) -> str:
    """Returns the mode that `open(path, mode)` or `path.open(mode)` is called with, "r" where it is no constant."""
    named = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    mode = named[0] if named else next(iter(call.args[0 if is_method else 1 :]), ast.Constant("r"))
    return str(mode.value) if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else "r"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_can_unpickle(path: Path) -> None:
    tree = parse(path)
    assert not MODULES_WITH_PICKLE & set(imported(tree))
    for name, call in calls(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{path}:{call.lineno} {ast.unparse(call)[:80]}"
        assert given.get("allow_pickle", "False") == "False", where
        if name == "torch.load":
            assert given.get("weights_only") == "True", where
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False", where


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command: str) -> None:
    args = [command] if command else []
    script = (
        "import sys\n"
        "from pipeline.cli import run\n"
        f"code = run([*{args!r}, '--help'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: pipeline")
    assert result.stderr.strip() == "[]"
