"""The training loop of `stages.distill.run` inside one Ray actor: the same result, errors and progress as here.

The actor trains in its main thread; a second, idle actor passes progress to the driver and the wish to stop back.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from cache_schema.errors import EnvironmentProblem, PipelineError, UsageError
from cache_schema.progress import Progress
from pipeline.executors.base import Failure, attempt
from pipeline.executors.ray_cluster import connected
from stages.device import AUTO
from stages.distill.config import DistillConfig

SECONDS_BETWEEN_POSTS = 0.5


def distill_in_ray(
    configs: Sequence[DistillConfig],
    *,
    address: str | None,
    progress: Progress,
    notice: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> list[dict[str, Any]]:
    """Returns what `stages.distill.run.distill_side_by_side(configs)` does, computed by an actor of a Ray cluster.

    Args:
        configs: paths in them must mean the same where the actor runs.
        address: the address of a running cluster; None starts a private one on this machine.
        progress: called as training goes on.
        notice: called with what training has to say.
        should_stop: asked twice a second; the trainer then saves its state.

    Raises:
        UsageError: a device is one certain GPU.
        EnvironmentProblem: the cluster cannot be used, has no such GPU, or the actor died.
        PipelineError: training raised it.
        KeyboardInterrupt: `should_stop` said so and the state is saved; the message says where.
    """
    (device,) = {config.device for config in configs}
    if device not in (AUTO, "cpu", "cuda"):
        raise UsageError(f"--executor ray chooses the GPU, so it cannot take {device!r}: use --device cuda")
    cores = os.cpu_count() or 1
    with connected(address, num_cpus=cores, threads_per_worker=cores) as ray:
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        if device == AUTO:
            device = "cuda" if num_gpus else "cpu"
            configs = [replace(config, device=device) for config in configs]
            if num_gpus:
                notice(f"training on a GPU of Ray, which has {num_gpus}")
        if device == "cuda" and not num_gpus:
            raise EnvironmentProblem("a GPU is asked for and Ray has none: add a node with one, or use --device cpu")
        mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        trainer = ray.remote(num_cpus=1, num_gpus=int(device == "cuda"), max_restarts=0)(_Trainer)
        actor = trainer.remote(os.getcwd())
        try:
            answer = _follow(ray, actor.train.remote(list(configs), mailbox), mailbox, progress, notice, should_stop)
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:300]
            raise EnvironmentProblem(
                f"the Ray actor that trains is gone ({reason}): look for a lack of memory, and run again to resume"
            ) from error
        finally:
            ray.kill(actor)
            ray.kill(mailbox)
    return answer.unpacked()


@dataclass(frozen=True)
class Answer:
    """The end of training: exactly one of these is there."""

    results: list[dict[str, Any]] | None = None
    error: PipelineError | None = None
    stopped: str | None = None
    failure: Failure | None = None

    def unpacked(self) -> list[dict[str, Any]]:
        """Returns the results, or raises what training in this process would have raised."""
        if self.error is not None:
            raise self.error
        if self.stopped is not None:
            raise KeyboardInterrupt(self.stopped)
        if self.failure is not None:
            failed = EnvironmentProblem(f"training failed in Ray ({self.failure}): run again with --debug to see where")
            failed.add_note(self.failure.trace)
            raise failed
        assert self.results is not None
        return self.results


@dataclass(frozen=True)
class News:
    """The latest news of the trainer: its progress and its notices."""

    progress: tuple[int, int, str, str] | None
    notices: tuple[str, ...]


def _follow(
    ray: ModuleType,
    training: Any,
    mailbox: Any,
    progress: Progress,
    notice: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> Answer:
    """Passes news on until `training` ends, and returns its answer."""
    asked_to_stop = False
    while True:
        done, _ = ray.wait([training], timeout=SECONDS_BETWEEN_POSTS)
        if should_stop() and not asked_to_stop:
            asked_to_stop = True
            ray.get(mailbox.ask_to_stop.remote())
        news: News = ray.get(mailbox.take_news.remote())
        for said in news.notices:
            notice(said)
        if news.progress is not None:
            progress(*news.progress)
        if done:
            answer: Answer = ray.get(training)
            return answer


class Mailbox:
    """Holds the trainer's news for the driver, and the driver's wish to stop for the trainer."""

    def __init__(self) -> None:
        self._progress: tuple[int, int, str, str] | None = None
        self._notices: list[str] = []
        self._must_stop = False
        self._num_begun = 0
        self._answer: Answer | None = None

    def post(self, progress: tuple[int, int, str, str] | None, notices: list[str]) -> bool:
        """Keeps what is new; returns whether the trainer must stop."""
        self._progress = progress or self._progress
        self._notices += notices
        return self._must_stop

    def take_news(self) -> News:
        """Returns what was posted since the last call."""
        news = News(self._progress, tuple(self._notices))
        self._progress, self._notices = None, []
        return news

    def ask_to_stop(self) -> None:
        """Makes every `post` from now on say so."""
        self._must_stop = True

    def begin(self) -> int:
        """Returns how often training began before."""
        self._num_begun += 1
        return self._num_begun - 1

    def finish(self, answer: "Answer") -> None:
        """Keeps how training ended, for a trainer whose own answer goes elsewhere."""
        self._answer = answer

    def answer(self) -> "Answer | None":
        """Returns what `finish` was given, None before."""
        return self._answer


class _Trainer:
    """Trains where Ray put it."""

    def __init__(self, working_folder: str) -> None:
        if Path(working_folder).is_dir():
            os.chdir(working_folder)
        sys.path.insert(0, working_folder)

    def train(self, configs: list[DistillConfig], mailbox: Any) -> Answer:
        """Returns how training ended."""
        correspondence = Correspondence(mailbox)
        outcome = attempt(lambda _: _trained(configs, correspondence), None)
        correspondence.post()
        return Answer(failure=outcome.error) if outcome.value is None else outcome.value


class Correspondence:
    """The trainer's end of the mailbox, used at most every half second, so that training never waits for it."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._progress: tuple[int, int, str, str] | None = None
        self._notices: list[str] = []
        self._posted_at = 0.0
        self._must_stop = False

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Keeps the latest progress for the next post."""
        self._progress = (done, total, unit, note)

    def notice(self, said: str) -> None:
        """Keeps a sentence for the next post."""
        self._notices.append(said)

    def should_stop(self) -> bool:
        """Posts what is new when it is time, and returns whether the driver wants training to stop."""
        if time.monotonic() - self._posted_at >= SECONDS_BETWEEN_POSTS:
            self.post()
        return self._must_stop

    def post(self) -> None:
        """Sends what is new and learns what the driver wants."""
        import ray

        self._must_stop = ray.get(self._mailbox.post.remote(self._progress, self._notices))
        self._progress, self._notices = None, []
        self._posted_at = time.monotonic()


def _trained(configs: list[DistillConfig], driver: Correspondence) -> Answer:
    from stages.distill.run import TrainingStopped, distill_side_by_side

    try:
        callbacks = {"progress": driver.progress, "notice": driver.notice, "should_stop": driver.should_stop}
        return Answer(results=distill_side_by_side(configs, **callbacks))  # type: ignore[arg-type]
    except TrainingStopped as stopped:
        return Answer(stopped=str(stopped))
    except PipelineError as error:
        return Answer(error=type(error)(str(error)))
