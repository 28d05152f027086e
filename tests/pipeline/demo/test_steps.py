"""The demo's commands, before they are run."""

import importlib
import shlex
from pathlib import Path

import pytest

from pipeline.demo.steps import DemoConfig, DemoFolder, Step, steps_of


@pytest.fixture
def steps(tmp_path: Path) -> list[Step]:
    folder = DemoFolder(tmp_path)
    folder.data.path.mkdir()
    for number in range(3):
        (folder.data.path / f"pictures-{number:03}.tar").touch()
    return steps_of(folder, DemoConfig())


def test_the_pipeline_takes_every_command_of_the_demo(steps: list[Step]) -> None:
    for step in steps:
        name, *arguments = step.arguments
        command = importlib.import_module(f"pipeline.commands.{name}").command
        command.make_context(name, arguments)


def test_a_command_line_typed_into_a_shell_gives_the_same_arguments(steps: list[Step]) -> None:
    for step in steps:
        assert shlex.split(step.command_line) == ["pipeline", *step.arguments]


def test_all_tars_are_extracted_by_one_pattern(steps: list[Step], tmp_path: Path) -> None:
    assert str(tmp_path / "data" / "pictures-{000..002}.tar") in steps[0].arguments


def test_two_architectures_are_trained_and_one_of_them_a_second_time() -> None:
    first = [plan for plan in DemoConfig().students if not plan.start]
    again = [plan for plan in DemoConfig().students if plan.start]

    assert len({plan.student.partition("?")[0] for plan in first}) == len(first) == 2
    assert [plan.start in {other.name for other in first} for plan in again] == [True]


def test_a_student_begins_with_the_weights_of_its_own_architecture_and_a_second_round_with_its_first(
    steps: list[Step], tmp_path: Path
) -> None:
    distilled = [step.arguments for step in steps if step.arguments[0] == "distill"]

    for plan, arguments in zip(DemoConfig().students, distilled, strict=True):
        if plan.start:
            assert arguments[arguments.index("--from") + 1] == str(tmp_path / "runs" / plan.start)
            assert "--init" not in arguments
        else:
            architecture = plan.student.removeprefix("timm:").partition("?")[0]
            assert arguments[arguments.index("--init") + 1] == str(tmp_path / "weights" / f"{architecture}.safetensors")
