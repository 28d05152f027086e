"""The inside of a Ray actor: one worker, and beside it a watcher that answers while the worker computes."""

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
from pipeline.executors.base import Outcome, attempt, pulse_of, start

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


@dataclass(frozen=True)
class Stopped:
    """The answer of an actor that met an error with which its work, or the run, must end."""

    error: PipelineError

    @classmethod
    def by(cls, error: PipelineError) -> "Stopped":
        """Returns the answer for `error`, without the traceback and chain that need not survive pickling."""
        copy = type(error)(str(error))
        copy.add_note("".join(traceback.format_exception(error)))
        return cls(copy)


class Host:
    """The actor: holds one worker, made when it joins."""

    def __init__(self, working_folder: str) -> None:
        # A teacher given as python:module:make lies in the folder where the user stands.
        if Path(working_folder).is_dir():
            os.chdir(working_folder)
        if sys.path[:1] != [working_folder]:
            sys.path.insert(0, working_folder)
        self._worker: Callable[[Any], Any] | None = None
        self._num_done = 0

    def place(self) -> Place:
        """Returns where this is; that there is an answer says that the actor has a place."""
        import ray

        return Place(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid())

    def join(self, make_worker: Callable[[], Callable[[Any], Any]]) -> str | Stopped:
        """Makes the worker and returns its `kind`, which all workers of a run must share, or why it cannot be made."""
        try:
            self._worker = start(make_worker)
        except PipelineError as error:
            return Stopped.by(error)
        return str(getattr(self._worker, "kind", ""))

    def attempt(self, task: Any) -> Outcome[Any, Any] | Stopped:
        """Returns the outcome of `task`, or why the run must stop."""
        assert self._worker is not None
        try:
            return attempt(self._worker, task)
        except PipelineError as error:
            return Stopped.by(error)
        finally:
            self._num_done += 1

    def pulse(self) -> tuple[int, int]:
        """Returns numbers that change as the worker makes progress."""
        return self._num_done, pulse_of(self._worker)

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
        close = getattr(self._worker, "close", None)
        if close is not None:
            close()
