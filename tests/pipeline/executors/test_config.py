"""An executor's configuration is refused when it contradicts itself, in the words of the flags."""

from typing import Any

import pytest

from cache_schema.errors import UsageError
from pipeline.executors.config import LONGEST_SECONDS, ExecutorConfig, WorkerRange


@pytest.mark.parametrize(("least", "most"), [(0, 0), (0, 3), (3, 2), (-1, 1), (2, -2)])
def test_a_range_of_workers_that_cannot_be_is_refused_with_both_numbers(least: int, most: int) -> None:
    with pytest.raises(UsageError) as error:
        WorkerRange(least, most)
    assert str(error.value) == f"{least}:{most} workers cannot be: give MIN:MAX with 1 or more, MIN first"


@pytest.mark.parametrize(("least", "most", "text"), [(1, 1, "1"), (4096, 4096, "4096"), (1, 8, "1:8")])
def test_a_range_is_written_as_the_flag_takes_it_and_is_elastic_when_its_ends_differ(
    least: int, most: int, text: str
) -> None:
    workers = WorkerRange(least, most)
    assert str(workers) == text and workers.is_elastic == (":" in text)


def test_the_default_is_one_worker_in_this_process_on_the_cpu() -> None:
    config = ExecutorConfig()
    assert (config.name, config.device, config.uses_gpu, config.workers, config.ray_address) == (
        *("auto", "cpu", False),
        *(None, None),
    )


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("workers", WorkerRange(1, 2), "--workers 1:2"),
        ("gpus_per_worker", 0.5, "--gpus-per-worker 0.5"),
        ("cpus_per_worker", 1, "--cpus-per-worker 1"),
    ],
)
def test_what_is_for_ray_is_refused_by_the_serial_executor(option: str, value: Any, shown: str) -> None:
    with pytest.raises(UsageError) as error:
        ExecutorConfig(device="cuda", **{option: value})
    said = f"{shown} is for --executor ray; the serial executor has one worker: add it or drop this"
    assert str(error.value) == said
    assert getattr(ExecutorConfig(name="ray", device="cuda", **{option: value}), option) == value


@pytest.mark.parametrize("device", ["cuda:0", "cuda:7", "mps", ""])
def test_ray_takes_no_certain_gpu_and_the_serial_executor_does(device: str) -> None:
    with pytest.raises(UsageError) as error:
        ExecutorConfig(name="ray", device=device)
    assert str(error.value) == (
        f"--executor ray gives each worker a GPU of its own, so it cannot take {device!r}: use --device cuda"
    )
    assert ExecutorConfig(device=device).uses_gpu


def test_a_share_of_a_gpu_is_none_of_a_cpu() -> None:
    with pytest.raises(UsageError, match=r"^--gpus-per-worker 0\.25 contradicts --device cpu: add --device cuda or"):
        ExecutorConfig(name="ray", gpus_per_worker=0.25)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), LONGEST_SECONDS + 1.0])
@pytest.mark.parametrize("option", ["join_seconds", "stall_seconds"])
def test_a_wait_is_longer_than_nothing_and_at_most_thirty_days(option: str, seconds: float) -> None:
    with pytest.raises(UsageError, match=rf"{option} is .*: use a value above 0, at most 2592000"):
        ExecutorConfig(**{option: seconds})
    assert getattr(ExecutorConfig(**{option: 2592000.0}), option) == LONGEST_SECONDS
