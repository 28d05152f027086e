"""What the documents name is there: files, tests, modules, and the new places of what moved."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cache_schema", "stages", "pipeline", "tests", "benchmarks")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOVED = ROOT / "docs" / "moved.md"
DOTTED = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)")


def is_there(name: str) -> bool:
    """Returns whether `a.b.c.D.e` is a module, or a name in one, or a name in a class of one."""
    parts = name.split(".")
    ends = (end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in MODULES)
    end = next(ends, 0)
    if not end:
        return False
    body = ast.parse(MODULES[".".join(parts[:end])].read_text(encoding="utf-8")).body
    for part in parts[end:]:
        found = dict(names_in(body))
        if part not in found:
            return False
        body = getattr(found[part], "body", [])
    return True


def names_in(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yields the functions, classes, imported names and values in the body of a module or a class."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, node) for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_module_and_test_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    tests = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    files = re.findall(rf"`((?:{'|'.join(PACKAGES)}|docs)/[\w/]+\.\w+)", text)
    assert not [name for name in files if not (ROOT / name).exists()]
    assert not [name for name in re.findall(r"`(test_\w+?)(?:\.py)?`", text) if name not in tests]
    names = DOTTED.findall(text) if document != MOVED else []
    assert not [name for name in names if not is_there(name)]


def places_of_what_moved() -> list[str]:
    text = MOVED.read_text(encoding="utf-8")
    beginning, _, rest = text.partition("## Things that left their module")
    left, _, renamed = rest.partition("\n## ")
    whole = re.findall(r"^\| `[\w.]+` \| `([\w.]+)` \|$", beginning + renamed, re.MULTILINE)
    names = re.findall(r"^\| `[\w.]+\.(\w+)` \| `([\w.]+)` \|$", left, re.MULTILINE)
    return sorted({*whole, *(f"{module}.{name}" for name, module in names)})


@pytest.mark.parametrize("place", places_of_what_moved())
def test_what_moved_is_where_the_page_about_it_says(place: str) -> None:
    assert is_there(place)
