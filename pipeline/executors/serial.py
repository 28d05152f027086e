"""Runs every task in this process, one after the other."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from pipeline.executors.base import Outcome, Result, Task, attempt, closing_if_closable, pulse_of, start
from pipeline.executors.config import ExecutorConfig
from pipeline.executors.watchdog import watched


class SerialExecutor:
    """Runs every task in this process, in order."""

    def __init__(self, config: ExecutorConfig | None = None) -> None:
        self._stall_seconds = (config or ExecutorConfig()).stall_seconds

    def map(
        self, make_worker: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task]
    ) -> Iterator[Outcome[Task, Result]]:
        """See `Executor.map`; outcomes come in the order of the tasks.

        Raises:
            EnvironmentProblem: also when there is no progress for the configured time.
        """
        state = _Progress()
        remaining = iter(tasks)
        for first in remaining:
            with watched(self._stall_seconds, state.pulse, state.describe):
                worker = state.worker = start(make_worker)
                with closing_if_closable(worker):
                    for task in chain([first], remaining):
                        state.task = task
                        outcome = attempt(worker, task)
                        state.num_done += 1
                        yield outcome


class _Progress:
    """The current task of the serial executor, for the watchdog."""

    def __init__(self) -> None:
        self.worker: Any = None
        self.task: Any = None
        self.num_done = 0

    def pulse(self) -> tuple[bool, int, int]:
        return self.worker is not None, self.num_done, pulse_of(self.worker)

    def describe(self) -> str:
        return "the loading of the worker" if self.worker is None else str(self.task)
