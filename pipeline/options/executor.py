"""The options that say who runs the parts, for every command that runs some."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from pipeline.executors.config import EXECUTORS, ExecutorConfig
from pipeline.options.layers import refuse_stray_cluster
from pipeline.options.types import Choice, Command, Count, HostAndPort, Number, WorkerCount, option

executor_option = partial(option, default_of=ExecutorConfig)
_LONGEST_SECONDS = 30 * 24 * 3600


def executor_options(command: Command) -> Command:
    """Adds the options of `ExecutorConfig`, and gives the command that as `executor`; `--device` is the command's."""
    command = _with_config(command)
    for add in reversed(
        (
            executor_option("--executor", field="name", type=Choice(tuple(EXECUTORS)), help="Who runs parts."),
            executor_option("--ray-address", type=HostAndPort(), help="A running Ray cluster. [default: its own]"),
            executor_option("--workers", type=WorkerCount(), help="Of Ray. [default: one per GPU; 2 on CPU]"),
            executor_option(
                "--gpus-per-worker",
                type=Number(at_least=0.01, at_most=1),
                rare=True,
                help="Share of a GPU, such as 0.5. [default: a whole one]",
            ),
            executor_option(
                "--cpus-per-worker",
                type=Count(1, 4096),
                rare=True,
                help="CPU threads of a worker. [default: an equal share; 1 on a cluster]",
            ),
            executor_option(
                "--join-seconds",
                type=Number(above=0, at_most=_LONGEST_SECONDS),
                rare=True,
                help="Go on so long with too few workers.",
            ),
            executor_option(
                "--stall-seconds",
                type=Number(above=0, at_most=_LONGEST_SECONDS),
                rare=True,
                help="Give up on a worker without progress.",
            ),
        )
    ):
        command = add(command)
    return command


def _with_config(command: Command) -> Command:
    @functools.wraps(command)
    def wrapped(*args: Any, executor: str, ray_address: str | None, device: str, **settings: Any) -> Any:
        refuse_stray_cluster(executor, ray_address)
        names = ("workers", "gpus_per_worker", "cpus_per_worker", "join_seconds", "stall_seconds")
        own = {name: settings.pop(name) for name in names}
        config = ExecutorConfig(name=executor, ray_address=ray_address, device=device, **own)
        return cast(Callable[..., Any], command)(*args, executor=config, device=device, **settings)

    return cast(Command, wrapped)
