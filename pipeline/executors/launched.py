"""Training in several processes that torchrun, or a batch system, started with this very command line each."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from cache_schema.errors import PipelineError, UsageError
from cache_schema.progress import Progress
from pipeline import signals
from pipeline.executors.config import ExecutorConfig
from pipeline.output import print_error
from stages.distill.config import DistillConfig


def is_one_of_several() -> bool:
    """Returns whether this process was started as one of several, as the variables of `torch.distributed` say."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def distill_with_others(
    configs: Sequence[DistillConfig],
    *,
    progress: Progress,
    notice: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> list[dict[str, Any]]:
    """Returns what `stages.distill.run.distill_side_by_side(configs)` does, computed with the other processes.

    Raises:
        EnvironmentProblem: the other processes do not come, or one is gone.
        PipelineError, KeyboardInterrupt: as training in one process.
    """
    # Of a connection that broke, what is said in one line below is enough; torch reads this when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from stages.distill.launched import going_on, launched_group, num_starts_before
    from stages.distill.run import distill_side_by_side

    if num_starts_before():
        configs = [going_on(config) for config in configs]
    with launched_group(say=print_error) as group:
        return distill_side_by_side(configs, progress=progress, notice=notice, should_stop=should_stop, group=group)


@contextmanager
def spoken_once(ctx: click.Context, executor: ExecutorConfig) -> Iterator[bool]:
    """Context that yields whether this process is the one that speaks; another one ends with the same exit code.

    A process that lost another one says so whichever it is, for process 0 may be the one that is gone.

    Raises:
        UsageError: processes were started, and the executor is to start some too.
    """
    if executor.name == "ray":
        raise UsageError(
            f"--executor ray starts its own workers, and this is one of {os.environ['WORLD_SIZE']} processes that "
            "were started already (WORLD_SIZE): drop the option, or run `pipeline distill` by itself"
        )
    speaks = os.environ["RANK"] == "0"
    try:
        yield speaks
    except PipelineError as error:
        if speaks or _names_another(error):
            raise
        ctx.exit(error.exit_code)
    except KeyboardInterrupt:
        if speaks:
            raise
        ctx.exit(signals.exit_code())


def _names_another(error: PipelineError) -> bool:
    from stages.distill.peers import LostProcess

    return isinstance(error, LostProcess)
