"""Several students of one command: which configuration each gets, by flag and by table."""

from pathlib import Path
from typing import Any

import click
import pytest

from cache_schema.errors import UsageError
from pipeline.cli import cli
from pipeline.options.students import configs_of
from stages.distill.config import DistillConfig


def asked(*words: str, config: Path | None = None) -> list[DistillConfig]:
    """Returns the configurations that a command line of `distill` asks for."""
    found: list[DistillConfig] = []
    with cli.make_context("pipeline", ["distill"]) as group:
        command = cli.get_command(group, "distill")
        assert command is not None
        more = ["--config", str(config)] if config is not None else []
        with command.make_context("distill", ["--cache", "/c", "--out", "/o", *words, *more], parent=group) as ctx:
            given: dict[str, Any] = {
                name: value
                for name, value in ctx.params.items()
                if name in DistillConfig.__dataclass_fields__ and name != "student"
            }
            found = configs_of(ctx, ctx.params["student"], ctx.params["students"], **given)
    return found


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        (tmp_path / "settings.toml").write_text(text)
        return tmp_path / "settings.toml"

    return write


def test_one_student_learns_in_out_itself() -> None:
    (config,) = asked("--student", "timm:resnet18", "--steps", "3")
    assert (config.student, config.out, config.steps) == ("timm:resnet18", Path("/o"), 3)
    (default,) = asked()
    assert default.student is None


def test_several_learn_in_folders_named_after_them_and_share_what_is_given() -> None:
    found = asked("--student", "open_clip:ViT-B-32", "--student", "timm:resnet18?image_size=64", "--loss", "vl=0.5")
    assert [config.out for config in found] == [Path("/o/ViT-B-32"), Path("/o/resnet18")]
    assert [config.student for config in found] == ["open_clip:ViT-B-32", "timm:resnet18?image_size=64"]
    assert all(config.weights["vl"] == 0.5 for config in found)


def test_two_of_one_architecture_are_told_apart_by_their_options() -> None:
    found = asked("--student", "timm:resnet18?image_size=64", "--student", "timm:resnet18?image_size=96")
    assert [config.out.name for config in found] == ["resnet18-image_size=64", "resnet18-image_size=96"]


def test_tables_give_each_student_its_own_settings(write: Any) -> None:
    path = write(
        """
        [distill]
        learning_rate = 1e-3
        batch_size = 64
        [distill.students.small]
        student = "timm:resnet10t"
        learning_rate = 2e-3
        ema = 0.99
        micro_batch_size = 16
        compile = true
        [distill.students.small.loss]
        vl = 1
        feature = 2.0
        [distill.students.large]
        student = "open_clip:ViT-B-32"
        from = "/runs/first"
        """
    )
    small, large = asked(config=path)
    assert (small.out, large.out) == (Path("/o/small"), Path("/o/large"))
    assert (small.student, large.student) == ("timm:resnet10t", "open_clip:ViT-B-32")
    assert (small.learning_rate, large.learning_rate) == (2e-3, 1e-3)
    assert (small.ema, small.micro_batch_size, small.compile) == (0.99, 16, True)
    assert (small.weights["vl"], small.weights["feature"]) == (1.0, 2.0)
    assert (large.weights["vl"], large.from_run, large.ema) == (0.7, Path("/runs/first"), 0.0)
    assert small.batch_size == large.batch_size == 64


def test_a_flag_is_what_tables_leave_open(write: Any) -> None:
    path = write("[distill.students.a]\nstudent = 'timm:resnet18'\n[distill.students.b]\nstudent = 'timm:resnet10t'\n")
    assert [config.learning_rate for config in asked("--learning-rate", "0.002", config=path)] == [2e-3, 2e-3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[distill.students.a]\nbatch_size = 3\n", r"\[distill.students.a\]: students that learn side by side share"),
        ("[distill.students.a]\nout = '/x'\n", "share out"),
        ("[distill.students.a]\nlerning_rate = 3\n", "unknown setting 'lerning_rate' .did you mean 'learning_rate'"),
        ("[distill.students.'a/b']\nstudent = 'x'\n", "cannot be the name of a folder"),
        ("[distill.students.'..']\nstudent = 'x'\n", "cannot be the name of a folder"),
    ],
)
def test_a_table_that_cannot_be_is_refused_with_its_name(write: Any, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked(config=write(text))


@pytest.mark.parametrize("text", ["[distill]\nstudents = 3\n", "[distill]\nstudents = ['timm:resnet18']\n"])
def test_students_that_are_no_tables_are_refused(write: Any, text: str) -> None:
    with pytest.raises(click.UsageError, match=r"write \[distill.students.NAME\]"):
        asked(config=write(text))


def test_values_of_a_table_are_read_as_their_flags_are(write: Any) -> None:
    with pytest.raises(click.UsageError, match="out of range"):
        asked(config=write("[distill.students.a]\nlearning_rate = 7\n"))


def test_the_same_student_twice_and_both_ways_at_once_are_refused(write: Any) -> None:
    with pytest.raises(UsageError, match=r"is given twice.*\[distill.students.NAME\]"):
        asked("--student", "timm:resnet18", "--student", "timm:resnet18")
    with pytest.raises(UsageError, match="use one of both"):
        asked("--student", "timm:resnet18", config=write("[distill.students.a]\nema = 0.5\n"))


def test_the_run_of_one_student_holds_no_others(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="is the run of one student"):
        asked("--student", "timm:resnet18", "--student", "timm:resnet10t", "--out", str(tmp_path))
