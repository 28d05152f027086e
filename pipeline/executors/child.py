"""A worker in a child process, which takes nobody with it when it dies in foreign code.

The child is a fresh interpreter with a command line of its own, as decode processes are: `multiprocessing` would import
the main module of whoever asks. Tasks and outcomes go through a socket pair; its standard input says that we live.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Generic, cast

from cache_schema.errors import EnvironmentProblem, PipelineError
from pipeline.executors.base import (
    WORKER_DIED,
    Failure,
    Outcome,
    Result,
    Stopped,
    Task,
    attempt,
    closing_if_closable,
    pulse_of,
    start,
)
from pipeline.executors.watchdog import stalled, watched

_SERVE = "from pipeline.executors.child import serve; serve()"
_SECONDS_BETWEEN_PULSES = 1.0
_SECONDS_TO_END = 5.0


class Child(Generic[Task, Result]):
    """Does tasks in a process of its own, which is started when needed, and anew after a death.

    Attributes:
        num_deaths: of processes, so far.
        pulse: a number that changes as it goes on within a task.
        is_busy: it has a task, or had one when we were interrupted.

    Args:
        make_worker: makes the worker there; it and the tasks can be pickled.
        stall_seconds: how long it may be without progress.
    """

    def __init__(self, make_worker: Callable[[], Callable[[Task], Result]], stall_seconds: float) -> None:
        self._make_worker = make_worker
        self._stall_seconds = stall_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self.num_deaths = 0
        self.pulse = 0
        self.is_busy = False

    def attempt(self, task: Task) -> Outcome[Task, Result]:
        """Returns the outcome of `task`; if the process died of it, a failure that names the signal or the exit code.

        Raises:
            PipelineError: the worker cannot be made, or met an error with which the run must end.
            EnvironmentProblem: also when no process can be started, or it makes no progress.
        """
        self.is_busy = True
        heard_at = time.monotonic()
        try:
            connection = self._connection or self._start()
            with contextlib.suppress(OSError):
                # One that died of its own accord meanwhile is found, and counted, below.
                connection.send(task)
            while isinstance(answer := connection.recv(), int):
                self.pulse, heard_at = self.pulse + 1, time.monotonic()
        except (EOFError, OSError):
            how = self._end()
            if how == "exit code 1" and time.monotonic() - heard_at >= self._stall_seconds:
                # Its watchdog could not interrupt it.
                raise stalled(str(task), self._stall_seconds) from None
            self.num_deaths += 1
            self.is_busy = False
            return Outcome(task, error=Failure(WORKER_DIED, how))
        self.is_busy = False
        if isinstance(answer, Stopped):
            raise answer.error
        # The task that we hold, not its copy that made the journey.
        outcome = cast(Outcome[Task, Result], answer)
        return Outcome(task, outcome.value, outcome.error)

    def close(self) -> None:
        """Ends the process, by force when it has a task, which is then abandoned."""
        if self.is_busy and self._process is not None:
            self._process.kill()
        elif self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(None)
        self._end()

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _SERVE, str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.PIPE,
                    # What a worker prints is no result of ours.
                    stdout=2,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                )
            except OSError as error:
                ours.close()
                raise EnvironmentProblem(
                    f"cannot start a process for a worker ({error.strerror}): free memory or process slots, and run "
                    "again to resume"
                ) from error
        self._connection = Connection(ours.detach())
        with contextlib.suppress(OSError):
            self._connection.send((self._make_worker, self._stall_seconds))
        return self._connection

    def _end(self) -> str:
        """Ends the process, when it has not ended, and returns how."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return "it was never there"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_SECONDS_TO_END)
        process.kill()
        code = process.wait()
        assert process.stdin is not None
        process.stdin.close()
        return f"exit code {code}" if code >= 0 else _name_of_signal(-code)


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def serve() -> None:
    """The whole life of a child; its end of the socket pair is on its command line."""
    # Ctrl-C goes to the whole process group; the parent decides what becomes of us.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _leave_no_core()
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    link = _Link(Connection(int(sys.argv[1])))
    make_worker, stall_seconds = link.receive()
    try:
        with watched(stall_seconds, lambda: 0, lambda: "the loading of the worker"):
            worker = start(make_worker)
        threading.Thread(target=link.tell_pulses, args=(worker,), name="pulse", daemon=True).start()
        with closing_if_closable(worker):
            while (task := link.receive()) is not None:
                with watched(stall_seconds, partial(pulse_of, worker), partial(str, task)):
                    outcome = attempt(worker, task)
                link.send(outcome)
    except PipelineError as error:
        link.send(Stopped.by(error))


class _Link:
    """The way to the parent, for two threads. When the parent is gone, so are we."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            sys.exit(0)

    def send(self, answer: object) -> None:
        with self._lock:
            try:
                self._connection.send(answer)
            except OSError:
                sys.exit(0)

    def tell_pulses(self, worker: Any) -> None:
        """Sends the pulse of `worker` whenever it has changed, for ever."""
        told = pulse_of(worker)
        while True:
            time.sleep(_SECONDS_BETWEEN_PULSES)
            if (now := pulse_of(worker)) != told:
                self.send(now)
                told = now


def _end_with_parent() -> None:
    # Nothing is ever written there: it ends when the parent does, however that ends.
    os.read(0, 1)
    os._exit(0)


def _leave_no_core() -> None:
    # A search for a row that kills lets many of us die; one file of the size of the memory each would fill the disk.
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
