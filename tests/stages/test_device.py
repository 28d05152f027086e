"""The device asked for, or a message with those that exist; never another one."""

import pytest

from cache_schema.errors import EnvironmentProblem, UsageError
from stages.device import torch_device


def test_the_cpu_is_always_there() -> None:
    assert torch_device("cpu").type == "cpu"


def test_an_absent_device_is_reported_with_those_that_exist() -> None:
    with pytest.raises(EnvironmentProblem, match=r"device 'cuda:99' is not there; this machine has: cpu"):
        torch_device("cuda:99")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CPU", "", "cuda:0,1"])
def test_a_word_that_names_no_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="use cpu, cuda or cuda:N"):
        torch_device(name)
