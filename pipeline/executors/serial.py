"""Runs every task in this process, one after the other."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from pipeline.executors.base import Outcome, Peeked, Result, Task
from pipeline.executors.config import ExecutorConfig
from pipeline.executors.own_worker import OwnWorker
from pipeline.executors.watchdog import watched


class SerialExecutor:
    """Runs every task in order, in this process; what may kill it in a child, and after a death there all others."""

    def __init__(self, config: ExecutorConfig | None = None) -> None:
        self._stall_seconds = (config or ExecutorConfig()).stall_seconds

    def map(
        self, make_worker: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task]
    ) -> Iterator[Outcome[Task, Result]]:
        """See `Executor.map`; outcomes come in the order of the tasks.

        Raises:
            EnvironmentProblem: also when there is no progress for the configured time.
        """
        remaining = iter(tasks)
        for first in remaining:
            worker = OwnWorker(make_worker, self._stall_seconds)
            with watched(self._stall_seconds, worker.sign_of_life, worker.describe), closing(worker):
                for task in Peeked(first, remaining):
                    yield worker.attempt(task)
