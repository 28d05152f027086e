"""The worker of one process: inside it or, for tasks that may kill it, in a child that can die alone."""

import time
from collections.abc import Callable
from typing import Any, Generic

from pipeline.executors.base import Outcome, Result, Task, attempt, may_kill, pulse_of, start
from pipeline.executors.child import Child


class OwnWorker(Generic[Task, Result]):
    """Does one task after the other; made when it is first needed.

    Once a child died, everything else is done in a child too: what killed it may come again, and would kill the run.

    Args:
        make_worker: makes it, in this process, and in a child from its pickled copy.
        stall_seconds: how long a child may be without progress.
    """

    def __init__(self, make_worker: Callable[[], Callable[[Task], Result]], stall_seconds: float) -> None:
        self._make_worker = make_worker
        self._stall_seconds = stall_seconds
        self._worker: Callable[[Task], Result] | None = None
        self._child: Child[Task, Result] | None = None
        self._num_done = 0
        self._task: Task | None = None

    def start(self) -> str:
        """Makes the worker in this process, and returns its `kind`; errors as `base.start`."""
        self._worker = start(self._make_worker)
        return str(getattr(self._worker, "kind", ""))

    def attempt(self, task: Task) -> Outcome[Task, Result]:
        """Returns the outcome of `task`; one that killed a child is a failure of the kind `WORKER_DIED`.

        Raises: as `base.attempt` and `base.start`.
        """
        self._task = task
        try:
            if may_kill(task) or (self._child is not None and self._child.num_deaths):
                if self._child is None:
                    self._child = Child(self._make_worker, self._stall_seconds)
                return self._child.attempt(task)
            self._close_child()
            if self._worker is None:
                self.start()
            assert self._worker is not None
            return attempt(self._worker, task)
        finally:
            self._num_done += 1

    @property
    def pulse(self) -> int:
        """A number that changes as it makes progress within a task."""
        return pulse_of(self._worker) + pulse_of(self._child)

    def sign_of_life(self) -> tuple[object, ...]:
        """Returns what changes as long as this process has no reason to be given up; a child watches itself."""
        alive = time.monotonic() if self._child is not None and self._child.is_busy else 0.0
        return self._worker is not None, self._num_done, self.pulse, alive

    def describe(self) -> str:
        """Returns what it is doing."""
        return "the loading of the worker" if self._worker is None and self._child is None else str(self._task)

    def close(self) -> None:
        """Ends the child, and closes the worker when it has a way to be closed."""
        self._close_child()
        close: Any = getattr(self._worker, "close", None)
        if callable(close):
            close()

    def _close_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
