"""GPUs are counted without asking a driver, and whoever leaves some idle is told."""

from pathlib import Path
from types import ModuleType

import pytest

from pipeline.executors.config import ExecutorConfig, WorkerRange
from pipeline.executors.gpus import idle_gpus, on_all_gpus
from pipeline.executors.ray_executor import RayExecutor
from stages.device import num_gpus_here


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, 3), ("0,1", 2), ("2", 1), ("", 0), ("-1", 0), ("0,-1,1", 1), ("0,1,2,3,4", 3)]
)
def test_gpus_are_counted_by_their_device_files_and_what_is_visible(
    tmp_path: Path, visible: str | None, expected: int
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia5", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert num_gpus_here(tmp_path, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == expected


@pytest.mark.parametrize(
    ("device", "num_gpus", "words"),
    [
        ("cpu", 0, ""),
        ("cuda", 1, ""),
        ("cpu", 1, "1 GPU of this machine will be idle: --device cuda"),
        ("cuda", 8, "7 GPUs of this machine will be idle: --executor ray --device cuda computes on all 8"),
        ("cuda:1", 2, "1 GPU of this machine will be idle: --executor ray --device cuda"),
    ],
)
def test_serial_run_says_how_many_gpus_it_leaves_idle(device: str, num_gpus: int, words: str) -> None:
    remark = idle_gpus(device, num_gpus)
    assert remark.startswith(words) and bool(remark) == bool(words)


@pytest.mark.parametrize(
    ("asked", "device", "num_gpus", "name"),
    [
        ("auto", "cpu", 0, "serial"),
        ("auto", "cuda", 1, "serial"),
        ("auto", "cuda", 4, "ray"),
        ("auto", "cuda:1", 4, "serial"),
        ("auto", "cpu", 4, "serial"),
        ("serial", "cuda", 4, "serial"),
    ],
)
def test_several_gpus_get_a_worker_each_unless_one_of_them_or_an_executor_was_named(
    asked: str, device: str, num_gpus: int, name: str
) -> None:
    found = on_all_gpus(ExecutorConfig(name=asked, device=device), device, num_gpus)
    assert (found.name, found.device) == (name, device)


@pytest.mark.parametrize(
    ("num_gpus", "remark"),
    [
        (0, []),
        (1, ["1 GPU of the cluster will be idle: --device cuda computes there"]),
        (3, ["3 GPUs of the cluster will be idle: --device cuda computes there"]),
    ],
)
def test_workers_on_cpus_say_how_many_gpus_of_a_cluster_they_leave_idle(num_gpus: int, remark: list[str]) -> None:
    said: list[str] = []
    executor = RayExecutor(ExecutorConfig(name="ray", ray_address="head:6379"), notice=said.append)
    cluster = ModuleType("a Ray that is connected")
    cluster.__dict__["cluster_resources"] = lambda: {"CPU": 8.0, **({"GPU": float(num_gpus)} if num_gpus else {})}
    assert executor._sized(cluster) == WorkerRange(1, 2)
    assert said == remark
