"""Whether some work leaves GPUs of this machine idle, and the executor with which it leaves none."""

from dataclasses import replace
from importlib.util import find_spec

from pipeline.executors.config import ExecutorConfig


def on_all_gpus(config: ExecutorConfig, device: str, num_gpus: int) -> ExecutorConfig:
    """Returns `config` with its executor decided, for work on `device` where there are `num_gpus`.

    Where nobody chose one, several GPUs get a Ray worker each; everything else is done in this process.
    """
    if config.name != "auto":
        return replace(config, device=device)
    several = device == "cuda" and num_gpus > 1 and find_spec("ray") is not None
    return replace(config, name="ray" if several else "serial", device=device)


def idle_in_cluster(num_gpus: int) -> str:
    """Returns the remark that workers on CPUs leave the GPUs of a cluster idle, or "" when it has none."""
    if not num_gpus:
        return ""
    return f"{num_gpus} GPU{'s' if num_gpus > 1 else ''} of the cluster will be idle: --device cuda computes there"


def idle_gpus(device: str, num_gpus: int) -> str:
    """Returns the remark that one worker on `device` leaves GPUs idle and how to use them, or "" when it does not."""
    num_idle = num_gpus - (device != "cpu")
    if num_idle <= 0:
        return ""
    gpus = f"{num_idle} GPU{'s' if num_idle > 1 else ''} of this machine"
    if num_gpus == 1:
        return f"{gpus} will be idle: --device cuda computes there"
    return f"{gpus} will be idle: --executor ray --device cuda computes on all {num_gpus}"
