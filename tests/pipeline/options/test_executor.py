"""Who runs the parts: what may be asked, and what contradicts itself."""

import os
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.executors.config import ExecutorConfig, WorkerRange
from pipeline.options.executor import executor_options

RAY = ("--executor", "ray")


@pytest.fixture
def extract(invoke: Callable[..., Result]) -> Callable[..., Result]:
    """Runs `pipeline extract` with arguments that come to no work, in an empty folder."""
    return lambda *args: invoke("extract", "--cache", "c", *args)


def parsed(*args: str) -> ExecutorConfig:
    """Returns the configuration that the options `args` mean."""
    found: list[ExecutorConfig] = []

    @click.command()
    @click.option("--device", default="cpu")
    @executor_options()
    def command(executor: ExecutorConfig, device: str) -> None:
        found.append(executor)

    result = CliRunner().invoke(command, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def test_default_is_the_serial_executor_and_nothing_else() -> None:
    assert parsed() == ExecutorConfig()


def test_workers_are_a_number_or_a_range() -> None:
    assert parsed(*RAY, "--workers", "2").workers == WorkerRange(2, 2)
    assert parsed(*RAY, "--workers", "1:8").workers == WorkerRange(1, 8)


def test_every_option_arrives() -> None:
    numbers = ("--cpus-per-worker", "3", "--gpus-per-worker", "0.5", "--join-seconds", "9", "--stall-seconds", "8")
    assert parsed(*RAY, "--ray-address", "head:6379", "--device", "cuda", *numbers) == ExecutorConfig(
        name="ray",
        device="cuda",
        ray_address="head:6379",
        gpus_per_worker=0.5,
        cpus_per_worker=3,
        join_seconds=9.0,
        stall_seconds=8.0,
    )


@pytest.mark.parametrize(
    "workers", ["0", "3:2", "0:2", "two", "1:", ":4", "1:2:3", "1-4", "-1", "1e3", "9" * 40, "5000", "1:5000", "", " 2"]
)
def test_number_of_workers_that_cannot_be_is_refused_with_the_rule(
    extract: Callable[..., Result], workers: str
) -> None:
    result = extract(*RAY, "--workers", workers)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --workers: ")
    assert "give a number from 1 to 4096, or MIN:MAX such as 1:8" in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--workers", "2"), "--workers 2 is for --executor ray"),
        (("--workers", "1:2"), "--workers 1:2 is for --executor ray"),
        (("--cpus-per-worker", "2"), "--cpus-per-worker 2 is for --executor ray"),
        (("--gpus-per-worker", "1", "--device", "cuda"), "--gpus-per-worker 1.0 is for --executor ray"),
        (("--ray-address", "head:6379"), "--ray-address head:6379 is for --executor ray"),
        ((*RAY, "--gpus-per-worker", "0.5"), "--gpus-per-worker 0.5 contradicts --device cpu"),
        ((*RAY, "--gpus-per-worker", "2", "--device", "cuda"), "--gpus-per-worker: '2' is out of range"),
        ((*RAY, "--gpus-per-worker", "0", "--device", "cuda"), "--gpus-per-worker: '0' is out of range"),
        ((*RAY, "--cpus-per-worker", "0"), "--cpus-per-worker: '0' is out of range"),
        ((*RAY, "--device", "cuda:1"), "use --device cuda"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_anything_is_written(
    extract: Callable[..., Result], tmp_path: Path, args: tuple[str, ...], words: str
) -> None:
    result = extract(*args)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir() == []


def test_rare_options_are_in_the_long_help_only(extract: Callable[..., Result]) -> None:
    for option in ("--gpus-per-worker", "--cpus-per-worker", "--join-seconds", "--stall-seconds"):
        assert option not in extract("--help").stdout
        assert option in extract("--help-all").stdout
