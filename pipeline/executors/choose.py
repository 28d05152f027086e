"""Chooses the executor that a configuration names; the only place that imports all of them."""

from pipeline.executors.base import Executor
from pipeline.executors.config import ExecutorConfig
from pipeline.executors.serial import SerialExecutor


def get_executor(config: ExecutorConfig) -> Executor:
    """Returns the executor that `config` names; where it leaves the choice, the one that works in this process."""
    if config.name in ("auto", "serial"):
        return SerialExecutor(config)
    from pipeline.executors.ray_executor import RayExecutor

    return RayExecutor(config)
