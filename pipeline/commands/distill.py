"""`pipeline distill`: train a student from a cache."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import click

from pipeline.executors.config import ExecutorConfig
from pipeline.executors.launched import distill_with_others, is_one_of_several, spoken_once
from pipeline.options.executor import executor_options
from pipeline.options.fields import settings_of
from pipeline.options.shared import help_all_option, shared_options
from pipeline.options.students import configs_of, student_tables
from pipeline.output import print_note, print_result
from pipeline.progress import open_progress
from pipeline.signals import stop_flag
from stages.distill.config import DistillConfig


@click.command(
    epilog="""\b
Example:
  pipeline distill --cache cache --student open_clip:ViT-B-32 --out run
  pipeline distill --cache cache --student open_clip:ViT-B-32 --student timm:fastvit_t8 --out runs
  torchrun --nproc-per-node 8 -m pipeline distill --cache cache --device cuda --out run
Stopped half-way? Run the same command again."""
)
@settings_of(DistillConfig, rare=False, repeated=("student",))
@student_tables
@executor_options(only=("name", "ray_address", "workers", "gpus_per_worker", "cpus_per_worker"))
@settings_of(DistillConfig, rare=True)
@help_all_option
@shared_options
@click.pass_context
def command(
    ctx: click.Context,
    executor: ExecutorConfig,
    as_json: bool,
    quiet: bool,
    student: str | tuple[str, ...] | None,
    students: dict[str, Any] | None,
    **settings: Any,
) -> None:
    """Train a student image tower from the cached features of a teacher; the teacher is not loaded.

    Several students learn in one pass over the cache, each in a folder in --out.
    """
    with ExitStack() as stack:
        of_several = is_one_of_several()
        speaks = stack.enter_context(spoken_once(ctx, executor)) if of_several else True
        configs = configs_of(ctx, student, students, **settings)
        progress = stack.enter_context(open_progress("distill", quiet=quiet or not speaks))
        should_stop = stack.enter_context(stop_flag())
        train = _trainer(executor, of_several=of_several)
        results = train(configs, progress=progress, notice=print_note, should_stop=should_stop)
    if not speaks:
        return
    print_result(
        results[0] if len(configs) == 1 else {"students": results},
        as_json=as_json,
        lines=[line for result in results for line in _lines(result)],
        next_step=_next_step(configs),
    )


def _trainer(executor: ExecutorConfig, *, of_several: bool) -> Callable[..., list[dict[str, Any]]]:
    """Returns what trains where `executor` says; with the processes beside this one where it is one of several."""
    if of_several:
        return distill_with_others
    if executor.name == "ray":
        if executor.workers is not None and executor.workers.most > 1:
            from pipeline.executors.ray_processes import distill_in_ray_processes

            return partial(distill_in_ray_processes, executor=executor)
        from pipeline.executors.ray_train import distill_in_ray

        return partial(distill_in_ray, address=executor.ray_address)
    from stages.distill.run import distill_side_by_side

    return distill_side_by_side


def _lines(result: dict[str, Any]) -> list[str]:
    plain = {name: value for name, value in result.items() if not isinstance(value, dict | list)}
    return [f"{name.replace('_', ' ')}: {value}" for name, value in plain.items()]


def _next_step(configs: Sequence[DistillConfig]) -> str:
    return f"pipeline evaluate {' '.join(shlex.quote(str(config.out)) for config in configs)} --data DIR"
