"""`pipeline distill`: train a student from a cache."""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.executors.config import ExecutorConfig
from pipeline.options.executor import executor_options
from pipeline.options.fields import settings_of
from pipeline.options.shared import help_all_option, shared_options
from pipeline.output import print_note, print_result
from pipeline.progress import open_progress
from pipeline.signals import stop_flag
from stages.distill.config import DistillConfig


@click.command(
    epilog="""\b
Example:
  pipeline distill --cache cache --student open_clip:ViT-B-32 --out run
  pipeline distill --cache cache --student timm:resnet10t?image_size=64 --out small \\
                   --negatives mined:nearest --steps 2000 --batch-size 256
Stopped half-way? Run the same command again."""
)
@settings_of(DistillConfig, rare=False)
@executor_options(only=("name", "ray_address"))
@settings_of(DistillConfig, rare=True)
@help_all_option
@shared_options
def command(executor: ExecutorConfig, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Train a student image tower from the cached features of a teacher; the teacher is not loaded."""
    config = DistillConfig(**settings)
    with open_progress("distill", quiet=quiet) as progress, stop_flag() as should_stop:
        train = _in_ray(executor.ray_address) if executor.name == "ray" else _here()
        result = train(config, progress=progress, notice=print_note, should_stop=should_stop)
    print_result(result, as_json=as_json, lines=_lines(result), next_step=_next_step(config.out))


def _here() -> Callable[..., dict[str, Any]]:
    from stages.distill.run import distill

    return distill


def _in_ray(address: str | None) -> Callable[..., dict[str, Any]]:
    from pipeline.executors.ray_train import distill_in_ray

    return partial(distill_in_ray, address=address)


def _lines(result: dict[str, Any]) -> list[str]:
    plain = {name: value for name, value in result.items() if not isinstance(value, dict | list)}
    return [f"{name.replace('_', ' ')}: {value}" for name, value in plain.items()]


def _next_step(out: Path) -> str:
    return f"pipeline evaluate {shlex.quote(str(out))} --data DIR"
