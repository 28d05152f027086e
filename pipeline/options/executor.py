"""The options that say who does the work, for every command that can give it to others."""

import functools
from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Any, cast

from pipeline.executors.config import ExecutorConfig
from pipeline.options.fields import settings_of
from pipeline.options.layers import refuse_stray_cluster
from pipeline.options.shared import Command
from pipeline.options.types import HostAndPort, WorkerCount
from stages.device import this_machine

TYPES = {"ray_address": HostAndPort(), "workers": WorkerCount()}


def executor_options(*, only: Collection[str] | None = None) -> Callable[[Command], Command]:
    """Adds the options of `ExecutorConfig`, or `only` those of these fields, and gives the command it as `executor`.

    `--device` is the command's own. What Ray is to compute on is decided here, so that contradictions show at once.
    """

    def add(command: Command) -> Command:
        return settings_of(ExecutorConfig, only=only, types_of=TYPES)(_with_config(command))

    return add


def _with_config(command: Command) -> Command:
    @functools.wraps(command)
    def wrapped(*args: Any, device: str, **options: Any) -> Any:
        own = {field.name: options.pop(field.name) for field in fields(ExecutorConfig) if field.name in options}
        refuse_stray_cluster(own["name"], own["ray_address"])
        on = this_machine().device(device) if own["name"] == "ray" else device
        config = ExecutorConfig(device=on, **own)
        return cast(Callable[..., Any], command)(*args, executor=config, device=device, **options)

    return cast(Command, wrapped)
