"""`pipeline distill`: train a student from a cache."""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline.executors.config import EXECUTORS
from pipeline.options.layers import refuse_stray_cluster
from pipeline.options.types import (
    Choice,
    Count,
    FilePath,
    HostAndPort,
    NamedNumber,
    Number,
    Text,
    help_all_option,
    option,
    shared_options,
)
from pipeline.output import print_note, print_result
from pipeline.progress import open_progress
from pipeline.signals import stop_flag
from stages.distill.config import DEFAULT_STUDENT, LARGEST_DEFAULT_BATCH, PICTURES, DistillConfig

config_option = partial(option, default_of=DistillConfig)

_BATCH = f"[default: {LARGEST_DEFAULT_BATCH}, or all]"


@click.command(
    epilog="""\b
Example:
  pipeline distill --cache cache --student open_clip:ViT-B-32 --out run
  pipeline distill --cache cache --student timm:resnet10t?image_size=64 --out small \\
                   --negatives mined:nearest --steps 2000 --batch-size 256
Stopped half-way? Run the same command again."""
)
@config_option("--cache", type=FilePath("DIR"), required=True, help="Folder of the cache.")
@config_option("--student", type=Text("NAME"), help=f"See `list students`. [default: {DEFAULT_STUDENT}]")
@config_option("--out", type=FilePath("DIR"), required=True, help="Folder of the run; made when missing.")
@config_option("--from", "from_run", field="from_run", type=FilePath("RUN"), help="Start from this run's weights.")
@config_option("--images", type=Text("NAME"), help="Train on this selection of images. [default: all ok ones]")
@config_option("--texts", type=Text("NAME"), help="Look at this selection of sentences. [default: all ok ones]")
@config_option("--negatives", type=Text("random|mined:NAME"), help="Which sentences a step looks at.")
@config_option("--steps", type=Count(), help="Steps of training. [default: 100 epochs]")
@config_option("--batch-size", type=Count(), help=f"Images of a step. {_BATCH}")
@config_option("--text-batch-size", type=Count(), help=f"Sentences of a step. {_BATCH}")
@config_option("--micro-batch-size", type=Count(), help="Images of a forward pass. [default: the whole batch]")
@config_option("--logit-scale", type=Number(above=0, at_most=1e6), help="Factor on cosines. [default: the teacher's]")
@config_option("--loss", field="weights", type=NamedNumber(), multiple=True, help="Weight of a loss; repeatable.")
@config_option("--learning-rate", type=Number(above=0, at_most=1), help="At the end of the warm-up.")
@config_option("--seed", type=Count(0), help="Of the random start, order, crops and sentences.")
@config_option("--fresh/--resume", help="Start over, or go on with what is in --out.")
@config_option("--precision", type=Choice(("auto", "float32", "bfloat16")), help="Of the forward pass.")
@config_option("--device", type=Text("cpu|cuda"), help="Where the student trains.")
@click.option("--executor", type=Choice(tuple(EXECUTORS)), default="serial", show_default=True, help="Who trains.")
@click.option("--ray-address", type=HostAndPort(), help="A running Ray cluster. [default: a private local one]")
@config_option("--image-array", type=Text("NAME"), rare=True, help="View of the images. [default: all but 0 in turn]")
@config_option("--pictures", type=Choice(PICTURES), rare=True, help="What crops are cut from.")
@config_option("--text-array", type=Text("NAME"), rare=True, help="Array of sentences. [default: the only one]")
@config_option("--mined-share", type=Number(at_least=0, at_most=1), rare=True, help="Most mined sentences of a step.")
@config_option(
    "--temperature", field="temperatures", type=NamedNumber(), multiple=True, rare=True, help="Of a loss; repeatable."
)
@config_option("--min-learning-rate", type=Number(at_least=0, at_most=1), rare=True, help="At the end of training.")
@config_option("--warmup-learning-rate", type=Number(at_least=0, at_most=1), rare=True, help="At the first step.")
@config_option("--warmup-share", type=Number(at_least=0, at_most=1), rare=True, help="Part of the steps that warms up.")
@config_option("--weight-decay", type=Number(at_least=0, at_most=1), rare=True, help="Not of biases, norms, positions.")
@config_option("--min-crop", type=Number(above=0, at_most=1), rare=True, help="Least share of a picture in a crop.")
@config_option("--flip/--no-flip", rare=True, help="Mirror half of the crops.")
@config_option("--window-parts", type=Count(), rare=True, help="Parts shuffled together. [default: all, or 32 of many]")
@config_option("--picture-memory-bytes", type=Count(0, 2**62), rare=True, help="Keep decoded pictures that fit.")
@config_option("--num-threads", type=Count(0, 4096), rare=True, help="CPU threads; 0 is torch's own choice.")
@config_option("--decode-workers", type=Count(0, 4096), rare=True, help="Threads or processes that make crops.")
@config_option("--checkpoint-steps", type=Count(), rare=True, help="Save at least this often,")
@config_option("--checkpoint-seconds", type=Number(above=0), rare=True, help="and at least this often.")
@config_option("--keep-checkpoints", type=Count(), rare=True, help="Newest checkpoints kept.")
@help_all_option
@shared_options
def command(
    executor: str,
    ray_address: str | None,
    loss: tuple[tuple[str, float], ...],
    temperature: tuple[tuple[str, float], ...],
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train a student image tower from the cached features of a teacher; the teacher is not loaded."""
    refuse_stray_cluster(executor, ray_address)
    config = DistillConfig(weights=dict(loss), temperatures=dict(temperature), **settings)
    with open_progress("distill", quiet=quiet) as progress, stop_flag() as should_stop:
        train = _in_ray(ray_address) if executor == "ray" else _here()
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
