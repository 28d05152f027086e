"""The device asked for, or a message with those that exist; never another one."""

import os
from pathlib import Path

import pytest

from cache_schema.errors import EnvironmentProblem, UsageError
from stages.device import Machine, chosen_device, num_cores, torch_device


def test_the_cpu_is_always_there() -> None:
    assert torch_device("cpu").type == "cpu"


def test_an_absent_device_is_reported_with_those_that_exist() -> None:
    with pytest.raises(EnvironmentProblem, match=r"device 'cuda:99' is not there; this machine has: cpu"):
        torch_device("cuda:99")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CPU", "", "cuda:0,1"])
def test_a_word_that_names_no_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="use auto, cpu, cuda or cuda:N"):
        torch_device(name)


TWO_GPUS = Machine(gpus=("H100", "A100"), num_cores=12, num_shown=2, num_there=2)


@pytest.mark.parametrize(
    ("name", "machine", "device", "said"),
    [
        ("auto", TWO_GPUS, "cuda", ["it computes on cuda:0 (H100)"]),
        ("auto", Machine(num_cores=4), "cpu", []),
        ("cpu", TWO_GPUS, "cpu", []),
        ("cuda:1", TWO_GPUS, "cuda:1", []),
        ("cuda", Machine(), "cuda", []),
    ],
)
def test_auto_is_the_first_gpu_where_there_is_one_and_says_so_and_no_other_name_is_changed(
    name: str, machine: Machine, device: str, said: list[str]
) -> None:
    sentences: list[str] = []
    assert chosen_device(name, "it computes", sentences.append, machine) == machine.device(name) == device
    assert sentences == said


def test_gpus_that_torch_cannot_use_are_named_with_what_to_do() -> None:
    sentences: list[str] = []
    assert chosen_device("auto", "training", sentences.append, Machine(num_shown=3, num_there=3)) == "cpu"
    (said,) = sentences
    assert said.startswith("training on the CPU, because torch can use none of the 3 GPUs of this machine: install")


def test_auto_is_the_device_that_torch_has_here() -> None:
    import torch

    assert torch_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("machine", "device", "expected"),
    [
        (TWO_GPUS, "cuda", 12),
        (TWO_GPUS, "cpu", 1),
        (Machine(("H100",), num_cores=64, num_shown=1, num_there=8), "cuda", 8),
        (Machine(("H100",), num_cores=2, num_shown=1, num_there=8), "cuda", 1),
    ],
)
def test_decoders_get_the_cores_beside_a_gpu_and_a_share_of_them_beside_one_of_several(
    machine: Machine, device: str, expected: int
) -> None:
    assert machine.num_decoders(device) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_cores_are_those_that_the_process_is_bound_to_or_what_its_container_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert num_cores(tmp_path) == expected
