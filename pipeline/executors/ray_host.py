"""The inside of a Ray actor: its own worker, and beside it a watcher that answers while the worker computes."""

import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_schema.errors import PipelineError
from pipeline.executors.base import Outcome, Stopped
from pipeline.executors.config import LONGEST_SECONDS
from pipeline.executors.own_worker import OwnWorker

# The concurrency group in which `pulse` and `stacks` run, apart from the work.
WATCH = "watch"


@dataclass(frozen=True)
class Place:
    """The place where an actor runs."""

    node_id: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"node {self.host} (process {self.pid})"


class Host:
    """The actor: holds one worker, made when it joins."""

    def __init__(self, working_folder: str) -> None:
        # A teacher given as python:module:make lies in the folder where the user stands.
        if Path(working_folder).is_dir():
            os.chdir(working_folder)
        if sys.path[:1] != [working_folder]:
            sys.path.insert(0, working_folder)
        self._worker: OwnWorker[Any, Any] | None = None
        self._num_done = 0

    def place(self) -> Place:
        """Returns where this is; that there is an answer says that the actor has a place."""
        import ray

        return Place(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid())

    def join(self, make_worker: Callable[[], Callable[[Any], Any]]) -> str | Stopped:
        """Makes the worker and returns its `kind`, which all workers of a run must share, or why it cannot be made."""
        # The pool watches all of it, by its pulse.
        self._worker = OwnWorker(make_worker, LONGEST_SECONDS)
        try:
            return self._worker.start()
        except PipelineError as error:
            return Stopped.by(error)

    def attempt(self, task: Any) -> Outcome[Any, Any] | Stopped:
        """Returns the outcome of `task`, or why the run must stop."""
        assert self._worker is not None
        try:
            return self._worker.attempt(task)
        except PipelineError as error:
            return Stopped.by(error)
        finally:
            self._num_done += 1

    def pulse(self) -> tuple[int, int]:
        """Returns numbers that change as the worker makes progress."""
        return self._num_done, self._worker.pulse if self._worker is not None else 0

    def stacks(self) -> str:
        """Returns where every other thread of this process is."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return "\n".join(
            f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame)).rstrip()}"
            for ident, frame in sys._current_frames().items()
            if ident != threading.get_ident()
        )

    def close(self) -> None:
        """Closes the worker, when there is one that can be closed."""
        if self._worker is not None:
            self._worker.close()
