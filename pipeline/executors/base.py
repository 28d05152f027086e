"""Runs one worker over many tasks, here or on a cluster, and tells what became of every task.

An executor knows nothing of features. A worker commits its own results to disk and returns a small report; what
travels is `make_worker`, tasks and reports, and all of them can be pickled. A task that fails comes back as a
`Failure` and the others go on; so does one at which the worker's process died, as the kind `WORKER_DIED`, unless the
process is the run's own. A task that says by a true `may_kill` that this is to be expected is done in a child. What
makes further work pointless (the lock is lost, the disk is full, the worker cannot be made or has gone wrong) ends the
run at once, as the exception it is.
"""

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from cache_schema.errors import DriftedError, EnvironmentProblem, LockedError, PipelineError

Task = TypeVar("Task")
Result = TypeVar("Result")

WORKER_DIED = "WorkerDied"

# With these the next task would fail in the same way, or would do harm.
STOPS_THE_RUN = (LockedError, EnvironmentProblem, DriftedError)


@dataclass(frozen=True)
class Failure:
    """Why a task has no result. Plain words, so that it can leave the process where it happened.

    Attributes:
        kind: name of the exception's class.
        message: what the exception says.
        trace: traceback as text, for `--debug`; may be empty.
        exit_code: what a command that met only this failure ends with: 4 when the input was refused, and doing the
            task again would be refused again; otherwise 3, run again to resume.
    """

    kind: str
    message: str
    trace: str = ""
    exit_code: int = 3

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Returns the description of `error`."""
        if isinstance(error, SystemExit):
            said = f"{_called(error)}: raise an error there that says what is wrong"
            return cls(type(error).__name__, said, "".join(traceback.format_exception(error)))
        refused = isinstance(error, PipelineError) and error.exit_code == 4
        trace = "".join(traceback.format_exception(error))
        return cls(type(error).__name__, str(error), trace, 4 if refused else 3)

    def __str__(self) -> str:
        return self.message if self.exit_code == 4 or not self.kind else f"{self.kind}: {self.message}"


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """The outcome of `task`: its `value`, or the `error` that it failed with."""

    task: Task
    value: Result | None = None
    error: Failure | None = None


class Executor(Protocol):
    """Runs a worker over tasks."""

    def map(
        self, make_worker: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task]
    ) -> Iterator[Outcome[Task, Result]]:
        """Yields the outcome of every task, in any order.

        Args:
            make_worker: called once per process, at its first task; without tasks it is never called. Its worker is
                called with one task at a time, and `close()`d at the end when it has that method. It may keep a
                number `pulse` that changes as it goes on within a task, and a word `kind` that must be the same for
                all workers of a run.
            tasks: read as workers become free. The iterator may have more to give after an outcome than before it.

        Raises:
            PipelineError: `make_worker` failed, or a task met an error of `STOPS_THE_RUN`.
        """
        ...


def attempt(worker: Callable[[Task], Result], task: Task) -> Outcome[Task, Result]:
    """Returns what `worker` makes of `task`, or its failure. This is the boundary where any error becomes a value.

    Raises:
        LockedError, EnvironmentProblem, DriftedError: the run must stop.
        KeyboardInterrupt: a person or the watchdog wants it to.
    """
    try:
        return Outcome(task, worker(task))
    except (*STOPS_THE_RUN, KeyboardInterrupt):
        raise
    # Also sys.exit and what else is no Exception, such as a panic in Rust: a worker is not who ends the run.
    except BaseException as error:  # noqa: BLE001 - one bad task must not cost the others
        return Outcome(task, error=Failure.of(error))


def start(make_worker: Callable[[], Callable[[Task], Result]]) -> Callable[[Task], Result]:
    """Returns the worker that `make_worker` makes.

    Raises:
        PipelineError: `make_worker` raised it; any other error of its becomes an `EnvironmentProblem`.
    """
    try:
        return make_worker()
    except (PipelineError, KeyboardInterrupt):
        raise
    except BaseException as error:
        said = _called(error) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        raise EnvironmentProblem(
            f"no worker can be made ({said}): mend what the message names, or run with "
            "--debug to see where it comes from"
        ) from error


def _called(error: SystemExit) -> str:
    return f"something in it called sys.exit({'' if error.code is None else repr(error.code)})"


def may_kill(task: Any) -> bool:
    """Returns whether `task` says that it may well kill its worker."""
    return bool(getattr(task, "may_kill", False))


def pulse_of(worker: Any) -> int:
    """Returns a number that changes when `worker` makes progress within a task, if it keeps one in `pulse`."""
    return int(getattr(worker, "pulse", 0))


@dataclass(frozen=True)
class Stopped:
    """The answer of another process that met an error with which its work, or the run, must end."""

    error: PipelineError

    @classmethod
    def by(cls, error: PipelineError) -> "Stopped":
        """Returns the answer for `error`, without the traceback and chain that need not survive pickling."""
        copy = type(error)(str(error))
        copy.add_note("".join(traceback.format_exception(error)))
        return cls(copy)


class Peeked(Iterator[Task]):
    """`rest` with a `first` that was taken from it; asked again at its end, it asks `rest` again."""

    def __init__(self, first: Task, rest: Iterator[Task]) -> None:
        self._first = [first]
        self._rest = rest

    def __next__(self) -> Task:
        return self._first.pop() if self._first else next(self._rest)


def closing_if_closable(worker: Any) -> Any:
    """Returns a context manager that closes `worker` at its end, when it has a `close` method."""
    return closing(worker) if callable(getattr(worker, "close", None)) else nullcontext(worker)
