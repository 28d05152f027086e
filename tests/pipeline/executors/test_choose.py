"""The executor that is asked for, or the nearest name."""

import pytest

from cache_schema.errors import UsageError
from pipeline.executors.choose import get_executor
from pipeline.executors.config import ExecutorConfig


def test_unknown_executor_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'serial'"):
        get_executor(ExecutorConfig(name="seriel"))


def test_ray_executor_refuses_one_certain_gpu() -> None:
    with pytest.raises(UsageError, match="use --device cuda"):
        get_executor(ExecutorConfig(name="ray", device="cuda:1"))
