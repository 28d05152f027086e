"""The walls of the house, read from the sources: who may import whom, who may write, who may swallow an error."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
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
# Floors that build on none of each other, although one stands below the other.
NEVER_MEET = ("extract", "distill")
TORCH = ("torch", "torchvision", "open_clip", "timm")
HEAVY = (*TORCH, "ray", "faiss", "zarr", "pyarrow")

EVERYTHING = {"everything", "Exception", "BaseException"}
# Where an error of any kind becomes a value: decoding, and the boundary of the executors.
MAY_CATCH_EVERYTHING = (Path("stages/images"), Path("pipeline/executors"))
MAY_WRITE = Path("cache_schema/atomic.py")
MODULES_WITH_PICKLE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# TensorBoard's SummaryWriter is none of these: it appends to a log of its own that nothing of ours reads.
WRITING_METHODS = {"write_text", "write_bytes", "save_file", "save_pretrained"}
WRITING_METHODS |= {"write_table", "write_index", "save_array", "savez", "savez_compressed"}
WRITING_FUNCTIONS = {"np.save", "numpy.save", "torch.save", "zarr.save"}


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def floors() -> dict[str, str]:
    """Returns folder -> what it is, from the list at the beginning of docs/architecture.md, from the top down."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("\n## ")[0]
    return dict(re.findall(r"^\| `(stages/\w+)` \| (.*) \|$", text, re.MULTILINE))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the full name of everything that `tree` imports, wherever it stands: modules, and names in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_imported(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(parse(path))}


def own_modules_imported(path: Path) -> set[str]:
    """Returns our own modules that `path` imports, at its top or inside a function."""
    names = {name if name in MODULES else name.rpartition(".")[0] for name in imported(parse(path))}
    return {name for name in names if name in MODULES} - {module_of(path)}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yields every call in `tree` with the dotted name that is called, as far as it is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=str)
def test_packages_import_in_one_direction(path: Path) -> None:
    wrong = FORBIDDEN[path.parts[0]] & packages_imported(path)
    assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "stages"], ids=str)
def test_a_floor_imports_the_floors_above_it_and_the_landing_only(path: Path) -> None:
    order = ["", *(folder.removeprefix("stages/") for folder in floors())]
    here = path.parts[1] if len(path.parts) > 2 else ""
    for module in own_modules_imported(path):
        package, _, rest = module.partition(".")
        there = rest.partition(".")[0] if f"stages/{rest.partition('.')[0]}" in floors() else ""
        if package != "stages" or there == here:
            continue
        assert order.index(there) < order.index(here), f"{path} climbs to {module}"
        assert {here, there} != set(NEVER_MEET), f"{path} imports {module}"


def test_every_folder_of_stages_is_a_floor_that_says_what_it_is_and_the_landing_holds_two_files() -> None:
    folders = {str(path.parent) for path in FILES if path.parts[0] == "stages" and len(path.parts) > 2}
    assert folders == floors().keys()
    for folder, words in floors().items():
        documentation = ast.get_docstring(parse(Path(folder) / "__init__.py")) or ""
        assert documentation.partition("\n")[0] == words
    landing = {path.name for path in FILES if path.parent == Path("stages")}
    assert landing == {"__init__.py", "device.py", "prefetch.py"}


def test_no_module_imports_itself_through_others() -> None:
    # Imports inside functions count too: they only hide a circle. Raises CycleError, which names it.
    TopologicalSorter({module: own_modules_imported(path) for module, path in MODULES.items()}).prepare()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_ray_is_imported_only_by_its_executors_and_these_only_where_one_is_chosen(path: Path) -> None:
    is_of_ray = path.parent == Path("pipeline/executors") and path.name.startswith("ray_")
    assert is_of_ray or "ray" not in packages_imported(path)
    if not is_of_ray and path != Path("pipeline/executors/choose.py"):
        assert "pipeline.executors.ray_executor" not in own_modules_imported(path)


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("stages.images.pool_child", (*HEAVY, "click", "rich", "fsspec")),
        ("stages.extract.worker", (*TORCH, "ray", "faiss", "zarr", "click", "rich", "fsspec")),
        ("stages.imported.worker", (*TORCH, "ray", "faiss", "zarr", "click", "rich", "fsspec")),
        ("stages.sources", (*TORCH, "ray", "faiss", "zarr", "click", "rich", "fsspec")),
    ],
)
def test_what_runs_in_many_processes_imports_nothing_heavy(module: str, never: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print([name for name in {never!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


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
        assert not too_much or path.parent in MAY_CATCH_EVERYTHING, f"{path}:{node.lineno} catches {too_much}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_atomic_opens_files_for_writing(path: Path) -> None:
    if path == MAY_WRITE:
        return
    tree = parse(path)
    handed = filled_by_atomic(tree)
    for name, call in calls(tree):
        where = f"{path}:{call.lineno} {ast.unparse(call)[:80]}"
        # A buffer is memory, and the null device keeps nothing.
        given = {ast.unparse(value) for value in (*call.args, *(k.value for k in call.keywords))}
        if given & {"buffer", "os.devnull"} or call in handed:
            continue
        last = name.split(".")[-1]
        assert last not in WRITING_METHODS and name not in WRITING_FUNCTIONS, where
        if name == "os.open":
            assert not {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND"} & set(re.findall(r"O_\w+", where)), where
        elif last == "open":
            assert not set(open_mode(call, is_method=name != "open")) & set("wax+"), where


def filled_by_atomic(tree: ast.AST) -> set[ast.Call]:
    """Returns the calls inside functions that are handed to `atomic.publish_with`, which says where they may write."""
    publishing = [call for name, call in calls(tree) if name == "atomic.publish_with"]
    return {inner for call in publishing for value in call.args for _, inner in calls(value)}


def open_mode(call: ast.Call, *, is_method: bool) -> str:
    """Returns the mode that `open(path, mode)` or `path.open(mode)` is called with, "r" where it is no constant."""
    named = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    mode = named[0] if named else next(iter(call.args[0 if is_method else 1 :]), ast.Constant("r"))
    return str(mode.value) if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else "r"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_can_unpickle(path: Path) -> None:
    tree = parse(path)
    assert not MODULES_WITH_PICKLE & packages_imported(path)
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
