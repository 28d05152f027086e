"""Training in several processes that Ray Train starts, on this machine or on a cluster, and starts again when one dies.

Ray Train makes the processes and their connection; what they do is `stages.distill.run`, as with torchrun. Process 0
passes progress and the wish to stop through the same mailbox as a single trainer in Ray.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from cache_schema.errors import EnvironmentProblem, PipelineError, UsageError
from cache_schema.progress import Progress
from pipeline.executors.base import attempt
from pipeline.executors.config import ExecutorConfig
from pipeline.executors.ray_cluster import connected, num_gpus_of, resources
from pipeline.executors.ray_train import SECONDS_BETWEEN_POSTS, Answer, Correspondence, Mailbox, News
from pipeline.output import print_error
from stages.device import AUTO
from stages.distill.config import DistillConfig
from stages.distill.peers import LostProcess

MAX_RESTARTS = 3
"""How often all processes are started again after one of them died."""


def distill_in_ray_processes(
    configs: Sequence[DistillConfig],
    *,
    executor: ExecutorConfig,
    progress: Progress,
    notice: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> list[dict[str, Any]]:
    """Returns what `stages.distill.run.distill_side_by_side(configs)` does, computed by workers of Ray Train.

    When a worker dies, all of them are started again, up to `MAX_RESTARTS` times, and the run goes on from its own
    newest checkpoint.

    Args:
        configs: paths in them must mean the same where the workers run.
        executor: how many workers, with what.
        progress: called as training goes on.
        notice: called with what training has to say.
        should_stop: asked twice a second; the state is then saved.

    Raises:
        UsageError: the number of workers may change, or a device is one certain GPU.
        EnvironmentProblem: Ray Train is not installed, the cluster cannot be used or has too little, or workers died
            too often.
        PipelineError: training raised it.
        KeyboardInterrupt: `should_stop` said so and the state is saved; the message says where.
    """
    workers = executor.workers
    assert workers is not None
    if workers.is_elastic:
        raise UsageError(
            f"--workers {workers} may change, and training divides its batches by a number: give --workers N"
        )
    cores = os.cpu_count() or 1
    threads = executor.cpus_per_worker or max(1, cores // workers.most)
    with connected(executor.ray_address, num_cpus=max(cores, workers.most), threads_per_worker=threads) as ray:
        _require_ray_train()
        configs = [replace(config, device=_device(ray, config, workers.most, executor)) for config in configs]
        mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        try:
            with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
                trainer = _trainer(ray, configs, executor, threads, mailbox, Path(folder))
                # In a thread: in the main one it would take the place of our handler of Ctrl-C.
                training = thread.submit(trainer.fit)
                _follow(ray, training, mailbox, progress, notice, should_stop)
            answer = ray.get(mailbox.answer.remote())
        finally:
            ray.kill(mailbox)
    error = training.exception()
    if answer is None:
        reason = " ".join(str(error).split())[:300]
        raise EnvironmentProblem(
            f"training in {workers} workers of Ray died {MAX_RESTARTS + 1} times ({reason}): look for a lack of "
            "memory, and run again to go on from the last checkpoint"
        ) from error
    results: list[dict[str, Any]] = answer.unpacked()
    return results


def _require_ray_train() -> None:
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(
            f"training in several workers of Ray needs Ray Train ({' '.join(str(error).split())[:100]}): pip install "
            "'vlm-distill[train]', or start the processes with torchrun"
        ) from error


def _device(ray: ModuleType, config: DistillConfig, workers: int, executor: ExecutorConfig) -> str:
    """Returns "cpu" or "cuda" for `config`; raises where the cluster lacks GPUs."""
    if config.device not in (AUTO, "cpu", "cuda"):
        raise UsageError(f"--executor ray chooses the GPUs, so it cannot take {config.device!r}: use --device cuda")
    needed = workers * (executor.gpus_per_worker or 1)
    enough = num_gpus_of(ray) >= needed
    if config.device == "cuda" and not enough and executor.ray_address is None:
        raise EnvironmentProblem(
            f"{needed:g} GPUs are asked for and Ray has {resources(ray)}: lower --workers, or use --device cpu"
        )
    return config.device if config.device != AUTO else "cuda" if enough else "cpu"


def _trainer(
    ray: ModuleType,
    configs: Sequence[DistillConfig],
    executor: ExecutorConfig,
    threads: int,
    mailbox: Any,
    folder: Path,
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    assert executor.workers is not None
    uses_gpu = configs[0].device == "cuda"
    of_worker: dict[str, float] = {"CPU": threads if executor.ray_address is not None else 1}
    if uses_gpu:
        of_worker["GPU"] = executor.gpus_per_worker or 1
    return TorchTrainer(
        _train_in_worker,
        train_loop_config={"configs": list(configs), "mailbox": mailbox, "folder": os.getcwd()},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if uses_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=executor.workers.most, use_gpu=uses_gpu, resources_per_worker=of_worker
        ),
        # What Ray Train itself keeps of a run is empty: a run has its own folder.
        run_config=RunConfig(storage_path=str(folder), failure_config=FailureConfig(max_failures=MAX_RESTARTS)),
    )


def _follow(
    ray: ModuleType,
    training: Any,
    mailbox: Any,
    progress: Progress,
    notice: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> None:
    """Passes news on until `training` ends."""
    asked_to_stop = False
    while True:
        done, _ = wait([training], timeout=SECONDS_BETWEEN_POSTS)
        if should_stop() and not asked_to_stop:
            asked_to_stop = True
            ray.get(mailbox.ask_to_stop.remote())
        news: News = ray.get(mailbox.take_news.remote())
        for said in news.notices:
            notice(said)
        if news.progress is not None:
            progress(*news.progress)
        if done:
            return


def _train_in_worker(told: dict[str, Any]) -> None:
    """Trains in one worker of Ray Train; its end goes into the mailbox, unless another worker is gone."""
    if Path(told["folder"]).is_dir():
        os.chdir(told["folder"])
    sys.path.insert(0, told["folder"])
    from ray.train.torch import get_device

    os.environ["LOCAL_RANK"] = str(get_device().index or 0)
    outcome = attempt(lambda _: _trained(told["configs"], told["mailbox"]), None)
    if isinstance(outcome.value, LostProcess):
        # The others are started again with a worker in its place.
        raise outcome.value
    if outcome.error is not None:
        _finish(told["mailbox"], Answer(failure=outcome.error))


def _trained(configs: Sequence[DistillConfig], mailbox: Any) -> LostProcess | None:
    """Trains with the other workers and lets process 0 say how it ended; returns what says that one is gone."""
    import ray

    from stages.distill.launched import going_on, launched_group
    from stages.distill.run import TrainingStopped, distill_side_by_side

    if ray.get(mailbox.answer.remote()) is not None:
        return None
    correspondence = Correspondence(mailbox)
    try:
        with launched_group(say=print_error) as group:
            if group.broadcast(ray.get(mailbox.begin.remote()) if group.leads else None):
                configs = [going_on(config) for config in configs]
            try:
                answer = Answer(
                    results=distill_side_by_side(
                        configs,
                        progress=correspondence.progress,
                        notice=correspondence.notice,
                        should_stop=correspondence.should_stop if group.leads else _never,
                        group=group,
                    )
                )
            except TrainingStopped as stopped:
                answer = Answer(stopped=str(stopped))
            except LostProcess:
                raise
            except PipelineError as error:
                answer = Answer(error=type(error)(str(error)))
            if group.leads:
                correspondence.post()
                _finish(mailbox, answer)
    except LostProcess as lost:
        return lost
    return None


def _never() -> bool:
    return False


def _finish(mailbox: Any, answer: Answer) -> None:
    import ray

    ray.get(mailbox.finish.remote(answer))
