"""Settings: flag before environment before file before default, and no name that means nothing passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from cache_schema.errors import EnvironmentProblem, UsageError
from pipeline.cli import cli
from pipeline.options.layers import check_environment, refuse_stray_cluster
from stages.distill.config import DistillConfig
from stages.extract.config import ExtractConfig
from tests.corpora.command_line import only_error
from tests.corpora.stub_teacher import STUB

REQUIRED = {"extract": ["--cache", "c"], "distill": ["--cache", "c", "--out", "o"]}


def settings_of(command: str, *args: str) -> dict[str, Any]:
    """Returns the settings that `command` is called with, without calling it."""
    with cli.make_context("pipeline", [command]) as group:
        found = cli.get_command(group, command)
        assert found is not None
        with found.make_context(command, [*REQUIRED[command], *args], parent=group) as ctx:
            return ctx.params


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text("[extract]\nbatch_size = 32\npart_rows = 64\nimages = ['a b.tar', 'c.tar']\nindex = false\n")
    return path


def test_default_is_that_of_the_dataclass() -> None:
    found = settings_of("extract")
    config = ExtractConfig(cache=Path("c"))
    for name in ("batch_size", "part_rows", "precision", "device", "decode_workers", "index", "images", "teacher"):
        assert found[name] == getattr(config, name), name
    assert settings_of("distill")["learning_rate"] == DistillConfig(cache=Path("c"), out=Path("o")).learning_rate


def test_file_beats_default_environment_beats_file_and_flag_beats_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ["--config", str(file)]
    assert settings_of("extract", *config)["batch_size"] == 32
    monkeypatch.setenv("PIPELINE_EXTRACT_BATCH_SIZE", "16")
    assert settings_of("extract", *config)["batch_size"] == 16
    assert settings_of("extract", *config, "--batch-size", "8")["batch_size"] == 8
    assert settings_of("extract", *config)["part_rows"] == 64


def test_repeated_option_is_a_list_in_the_file_and_one_value_per_line_in_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_of("extract", "--config", str(file))["images"] == ("a b.tar", "c.tar")
    file.write_text("[extract]\nimages = 'only one.tar'\n")
    assert settings_of("extract", "--config", str(file))["images"] == ("only one.tar",)
    monkeypatch.setenv("PIPELINE_EXTRACT_IMAGES", "one two.tar\nthree.tar")
    assert settings_of("extract", "--config", str(file))["images"] == ("one two.tar", "three.tar")


def test_switch_can_be_set_in_file_and_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of("extract", "--config", str(file))["index"] is False
    monkeypatch.setenv("PIPELINE_EXTRACT_INDEX", "true")
    assert settings_of("extract", "--config", str(file))["index"] is True


def test_config_file_itself_can_be_named_in_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_EXTRACT_CONFIG", str(file))
    assert settings_of("extract")["batch_size"] == 32


def test_option_whose_name_is_a_python_word_keeps_that_name_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text("[distill]\nfrom = '/runs/first'\n[distill.loss]\nvl = 0.5\nudist = 1\n")
    found = settings_of("distill", "--config", str(path))
    assert found["from_run"] == Path("/runs/first")
    assert found["weights"] == {"vl": 0.5, "udist": 1.0}


def test_relative_path_is_resolved_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_of("extract")["cache"] == tmp_path / "c"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[extract]\nbatchsize = 3\n", "unknown setting 'batchsize' (did you mean 'batch_size'?)"),
        ("[extarct]\nbatch_size = 3\n", "unknown table 'extarct' (did you mean 'extract'?)"),
        ("batch_size = 3\n", "unknown table 'batch_size'"),
        ("extract = 3\n", "extract must be a table"),
        ("[extract\n", "is not TOML"),
        ("[extract]\nbatch_size = " + "9" * 5000, "is not TOML"),
    ],
)
def test_unknown_name_in_the_file_is_refused_with_the_nearest(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "f.toml"
    path.write_text(content)
    with pytest.raises(UsageError) as refusal:
        settings_of("extract", "--config", str(path))
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    "value", ["true", "0", "-1", "1e3", "nan", "'64'x", "2147483648", "[1, 2]", '"1e3"', "{a = 1}"]
)
def test_bad_value_in_the_file_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "f.toml"
    path.write_text(f"[extract]\nbatch_size = {value}\n")
    with pytest.raises((click.BadParameter, UsageError)):
        settings_of("extract", "--config", str(path))


def test_missing_config_file_is_a_usage_error_and_an_unreadable_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        settings_of("extract", "--config", str(tmp_path / "none.toml"))
    # Whoever reads this file from its start gets an error of the system, also when root.
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        settings_of("extract", "--config", "/proc/self/mem")


@pytest.mark.parametrize(
    ("variable", "suggestion"),
    [
        ("PIPELINE_EXTRACT_BATCHSIZE", "PIPELINE_EXTRACT_BATCH_SIZE"),
        ("PIPELINE_EXTRAT_BATCH_SIZE", "PIPELINE_EXTRACT_BATCH_SIZE"),
        ("PIPELINE_DEBUGG", "PIPELINE_DEBUG"),
    ],
)
def test_misspelt_variable_is_refused_with_the_nearest(variable: str, suggestion: str) -> None:
    commands = ["extract", "distill"]
    with pytest.raises(UsageError, match=f"{variable}.*{suggestion}"):
        check_environment("extract", ["batch_size"], commands, {variable: "1"})


@pytest.mark.parametrize(
    "variable",
    ["PIPELINE_DEBUG", "PIPELINE_DISTILL_STEPS", "PIPELINE_WORKSPACE", "PIPELINE_SERVICE_HOST", "PATH", "PIPELINE_"],
)
def test_variable_of_others_is_left_alone(variable: str) -> None:
    check_environment("extract", ["batch_size"], ["extract", "distill"], {variable: "1"})


def test_ray_address_without_the_cluster_flag_is_refused() -> None:
    there = {"RAY_ADDRESS": "10.0.0.1:6379"}
    for executor in ("serial", "ray"):
        with pytest.raises(UsageError, match="RAY_ADDRESS is set"):
            refuse_stray_cluster(executor, None, there)
    with pytest.raises(UsageError, match="--ray-address"):
        refuse_stray_cluster("serial", "10.0.0.1:6379", {})
    refuse_stray_cluster("ray", "10.0.0.1:6379", there)
    refuse_stray_cluster("serial", None, {})


def test_bad_value_in_the_environment_names_the_variable(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_EXTRACT_BATCH_SIZE", "many")
    result = invoke("extract", "--cache", "c")
    assert result.exit_code == 2
    assert "environment variable PIPELINE_EXTRACT_BATCH_SIZE: 'many'" in only_error(result)


def test_bad_value_in_the_file_names_the_setting(invoke: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[extract]\nbatch_size = 0\n")
    result = invoke("extract", "--cache", "c", "--config", str(tmp_path / "settings.toml"))
    assert result.exit_code == 2
    assert "setting batch_size in the --config file: 0" in only_error(result)


def test_ray_address_in_the_environment_is_refused_before_anything_is_done(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    result = invoke("extract", "--cache", "c", "--teacher", STUB)
    assert result.exit_code == 2
    assert "RAY_ADDRESS is set (10.0.0.1:6379)" in only_error(result)
