"""The planted faults of `tests/mutants.py` can still be planted, and the program that plants them tells the truth."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, copied_tree, judge

CODE = "def double(x):\n    return 2 * x\n"
SEEING = "from code_under_test import double\n\ndef test_double():\n    assert double(3) == 6\n"
BLIND = "from code_under_test import double\n\ndef test_double():\n    assert double(0) == 0\n"


@cache
def functions_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_mutant_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_text_of_a_mutant_occurs_once_and_its_tests_exist(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1, "write down where that code is now"
    assert mutant.old != mutant.new and mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in functions_in(ROOT / file), (
            f"{test} is gone: name the test that sees this fault now"
        )


@pytest.mark.parametrize(
    ("test", "new", "outcome"),
    [(SEEING, "3 * x", "died"), (BLIND, "3 * x", "survived"), (SEEING, "2 * x)", "did not run")],
    ids=["seen", "not seen", "no Python"],
)
def test_a_mutant_dies_by_a_failing_test_alone(tmp_path: Path, test: str, new: str, outcome: str) -> None:
    (tmp_path / "code_under_test.py").write_text(CODE)
    (tmp_path / "test_it.py").write_text(test)
    mutant = Mutant("tripled", "code_under_test.py", "2 * x", new, ("test_it.py::test_double",))
    assert judge(mutant, tmp_path).outcome == outcome
    assert (tmp_path / "code_under_test.py").read_text() == CODE


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    with copied_tree() as copy:
        yield copy


@pytest.mark.campaign
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_dies(mutant: Mutant, tree: Path) -> None:
    verdict = judge(mutant, tree)
    assert verdict.outcome == "died", verdict.seen_by
