"""The same work on Ray actors.

Errors of the work itself come back as values from `pipeline.executor.attempt`, which runs inside the actor. Only what
Ray reports about its own processes (an actor died, a node was lost) is tried again, on a fresh actor and a bounded
number of times. Results are small reports; anything large is on disk before an actor answers.
"""

import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Generic

from cache_schema.errors import EnvironmentProblem, PipelineError, UsageError
from pipeline.executor import Failure, Outcome, Result, Task, attempt, start
from pipeline.ray_cluster import connected

# One task computes, one waits, so that an actor is never idle between two.
TASKS_IN_FLIGHT_PER_ACTOR = 2
ATTEMPTS_PER_TASK = 3
MAX_CPU_WORKERS = 2
SECONDS_TO_CLOSE = 5


class RayExecutor:
    """Runs tasks in a pool of Ray actors. See `pipeline.executor.Executor`; outcomes come as they are ready."""

    def __init__(self, *, num_workers: int | None = None, device: str = "cpu", address: str | None = None) -> None:
        """Checks the request; nothing is started before there is a task.

        Raises:
            UsageError: `device` names one certain GPU.
        """
        if device not in ("cpu", "cuda"):
            raise UsageError(
                f"--executor ray gives each worker a GPU of its own, so it cannot take {device!r}: use --device cuda"
            )
        self._num_workers = num_workers
        self._uses_gpu = device == "cuda"
        self._address = address

    def map(
        self, make_worker: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task]
    ) -> Iterator[Outcome[Task, Result]]:
        """See `Executor.map`."""
        remaining = iter(tasks)
        for first in remaining:
            cores = os.cpu_count() or 1
            num_cpus = max(self._num_workers or 0, cores)
            threads = max(1, cores // (self._num_workers or min(MAX_CPU_WORKERS, cores)))
            with connected(self._address, num_cpus=num_cpus, threads_per_worker=threads) as ray:
                pool: _Pool[Task, Result] = _Pool(ray, make_worker, self._size(ray), uses_gpu=self._uses_gpu)
                try:
                    yield from pool.run(chain([first], remaining))
                finally:
                    pool.close()

    def _size(self, ray: ModuleType) -> int:
        there = ray.cluster_resources()
        num_cpus, num_gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
        if not self._uses_gpu:
            return self._num_workers or max(1, min(MAX_CPU_WORKERS, num_cpus))
        if num_gpus < (self._num_workers or 1):
            raise EnvironmentProblem(
                f"{self._num_workers or 1} GPUs are asked for, Ray has {num_gpus} (and {num_cpus} CPUs): "
                "lower --workers, add nodes, or use --device cpu"
            )
        return self._num_workers or num_gpus


@dataclass(frozen=True)
class _Stopped:
    """What an actor answers when it met an error with which the run must end."""

    error: PipelineError

    @classmethod
    def by(cls, error: PipelineError) -> "_Stopped":
        """Returns the answer for `error`, without the traceback and chain that need not survive pickling."""
        copy = type(error)(str(error))
        copy.add_note("".join(traceback.format_exception(error)))
        return cls(copy)


class _Host:
    """The actor: holds one worker, made at the first task."""

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]], working_folder: str) -> None:
        # A teacher given as python:module:make lies in the folder where the user stands.
        if Path(working_folder).is_dir():
            os.chdir(working_folder)
        if sys.path[:1] != [working_folder]:
            sys.path.insert(0, working_folder)
        self._make_worker = make_worker
        self._worker: Callable[[Any], Any] | None = None

    def attempt(self, task: Any) -> Outcome[Any, Any] | _Stopped:
        """Returns the outcome of `task`, or why the run must stop."""
        try:
            if self._worker is None:
                self._worker = start(self._make_worker)
            return attempt(self._worker, task)
        except PipelineError as error:
            return _Stopped.by(error)

    def close(self) -> None:
        """Closes the worker, when there is one that can be closed."""
        close = getattr(self._worker, "close", None)
        if close is not None:
            close()


@dataclass
class _Item(Generic[Task]):
    task: Task
    num_deaths: int = 0


@dataclass
class _Actor(Generic[Task]):
    handle: Any
    in_flight: dict[Any, _Item[Task]] = field(default_factory=dict)  # oldest first: an actor works in order


class _Pool(Generic[Task, Result]):
    """Actors and what each of them has to do."""

    def __init__(
        self, ray: ModuleType, make_worker: Callable[[], Callable[[Task], Result]], num_workers: int, *, uses_gpu: bool
    ) -> None:
        self._ray = ray
        self._make_worker = make_worker
        self._num_workers = num_workers
        self._actor_class = ray.remote(num_cpus=1, num_gpus=int(uses_gpu), max_restarts=0)(_Host)
        self._actors: list[_Actor[Task]] = []
        self._again: deque[_Item[Task]] = deque()
        self._deaths_in_a_row = 0

    def run(self, tasks: Iterator[Task]) -> Iterator[Outcome[Task, Result]]:
        """Yields the outcome of every task.

        Raises:
            PipelineError: an actor says that the run must stop, or actors die again and again.
        """
        self._hand_out(tasks)
        while refs := [ref for actor in self._actors for ref in actor.in_flight]:
            # The time-out lets Python deliver signals.
            ready, _ = self._ray.wait(refs, num_returns=1, timeout=1.0)
            outcomes = list(chain.from_iterable(self._receive(ref) for ref in ready))
            self._hand_out(tasks)
            yield from outcomes

    def close(self) -> None:
        """Ends all actors; a task under way is abandoned, which is safe because a part is committed whole or not."""
        idle = [actor.handle.close.remote() for actor in self._actors if not actor.in_flight]
        if idle:
            self._ray.wait(idle, num_returns=len(idle), timeout=SECONDS_TO_CLOSE)
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._actors.clear()

    def _hand_out(self, tasks: Iterator[Task]) -> None:
        """Gives every actor its share of work, a first task to each before a second to any.

        A task that met a death has an actor for itself, so that the next death tells whose fault it was.
        """
        for depth in range(TASKS_IN_FLIGHT_PER_ACTOR):
            for number in range(self._num_workers):
                in_flight = list(self._actors[number].in_flight.values()) if number < len(self._actors) else []
                if len(in_flight) > depth or any(item.num_deaths for item in in_flight):
                    continue
                again = self._again and not in_flight
                item = self._again.popleft() if again else next((_Item(task) for task in tasks), None)
                if item is None:
                    break
                if number == len(self._actors):
                    self._actors.append(_Actor(self._actor_class.remote(self._make_worker, os.getcwd())))
                actor = self._actors[number]
                actor.in_flight[actor.handle.attempt.remote(item.task)] = item

    def _receive(self, ref: Any) -> list[Outcome[Task, Result]]:
        """Returns the outcome behind a finished `ref`; when its actor died, what is left to say of all its tasks."""
        actor = next(actor for actor in self._actors if ref in actor.in_flight)
        outcomes: list[Outcome[Task, Result]] = []
        # An actor works in order, so what was handed to it before `ref` is finished too, or died with it.
        for earlier in list(actor.in_flight):
            try:
                answer = self._ray.get(earlier)
            except self._ray.exceptions.RayError as error:
                return outcomes + self._bury(actor, error)
            if isinstance(answer, _Stopped):
                raise answer.error
            self._deaths_in_a_row = 0
            # The task that we hold, not its copy that made the journey.
            outcomes.append(Outcome(actor.in_flight.pop(earlier).task, answer.value, answer.error))
            if earlier == ref:
                break
        return outcomes

    def _bury(self, actor: _Actor[Task], error: Exception) -> list[Outcome[Task, Result]]:
        """Takes a dead actor's tasks back and returns those that were given up.

        Each may be the culprit: the answer to one that was done can be lost when the next one kills the process.
        """
        reason = " ".join(str(error).split())[:300]
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.RayTaskError | exceptions.RuntimeEnvSetupError) or getattr(
            error, "actor_init_failed", False
        ):
            raise EnvironmentProblem(f"a Ray worker cannot run this task ({reason}): see that it has the same packages")
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > ATTEMPTS_PER_TASK * (self._num_workers + 1):
            raise EnvironmentProblem(
                f"{self._deaths_in_a_row} Ray workers died in a row ({reason}): look for a lack of memory, lower "
                "--workers or --batch-size, and run again to resume"
            )
        self._ray.kill(actor.handle)
        self._actors.remove(actor)
        outcomes: list[Outcome[Task, Result]] = []
        for item in actor.in_flight.values():
            item.num_deaths += 1
            if item.num_deaths < ATTEMPTS_PER_TASK:
                self._again.append(item)
            else:
                message = f"the worker died {item.num_deaths} times at this task ({reason})"
                outcomes.append(Outcome(item.task, error=Failure("WorkerDied", message)))
        return outcomes
