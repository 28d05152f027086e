"""Ends this process's work when it makes no progress for too long, and says where it hangs."""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cache_schema.errors import EnvironmentProblem
from pipeline.output import print_error, print_note

SECONDS_TO_END = 20.0
# A stopped or sleeping machine is no hanging worker: time between two looks counts up to this.
MOST_SECONDS_BETWEEN_LOOKS = 5.0


class Clock:
    """Seconds in which this process was awake; a process that was stopped for an hour does not count the hour.

    It has to be read at least every `MOST_SECONDS_BETWEEN_LOOKS`.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._read_at = time.monotonic()

    def read(self) -> float:
        """Returns the awake seconds so far."""
        now = time.monotonic()
        self._seconds += min(now - self._read_at, MOST_SECONDS_BETWEEN_LOOKS)
        self._read_at = now
        return self._seconds


class _Stall(KeyboardInterrupt):
    """Passes, as Ctrl-C does, through whatever takes an error for that of one bad input."""


def stalled(what: str, seconds: float) -> EnvironmentProblem:
    """Returns the error for `what`, which made no progress for `seconds`."""
    return EnvironmentProblem(
        f"{what} made no progress for {seconds:g} s: see above where it hangs, mend that or give more "
        "--stall-seconds, and run again to resume"
    )


@contextmanager
def watched(seconds: float, pulse: Callable[[], object], describe: Callable[[], str]) -> Iterator[None]:
    """Watches the main thread: raises `stalled` in it when `pulse` gives the same for `seconds`.

    First every thread's stack goes to stderr. A thread that does not even notice the error, because it is deep in
    foreign code, is ended with the process, exit code 1, `SECONDS_TO_END` later; and if that code lets no Python run,
    the interpreter's own fault handler does the same. Outside the main thread there is only the fault handler.

    Args:
        seconds: without progress.
        pulse: returns something that changes as work goes on; called in another thread.
        describe: returns what is being worked on, for the message; likewise.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, _raise_stall) if is_main else None
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(seconds, pulse, describe, done, is_main), name="watchdog", daemon=True
    )
    watcher.start()
    try:
        yield
    except _Stall:
        raise stalled(describe(), seconds) from None
    finally:
        done.set()
        watcher.join()
        faulthandler.cancel_dump_traceback_later()
        if is_main:
            signal.signal(signal.SIGALRM, before)


def _raise_stall(_number: int, _frame: FrameType | None) -> None:
    raise _Stall


def _watch(
    seconds: float, pulse: Callable[[], object], describe: Callable[[], str], done: threading.Event, is_main: bool
) -> None:
    clock, last, changed_at = Clock(), pulse(), 0.0
    stderr = _stderr_file()
    look_seconds = min(MOST_SECONDS_BETWEEN_LOOKS / 2, seconds / 4)
    while True:
        # Armed anew at every look, for the case that this thread gets no turn either.
        faulthandler.dump_traceback_later(seconds + 2 * SECONDS_TO_END, exit=True, file=stderr)
        if done.wait(look_seconds):
            return
        now, seen = clock.read(), pulse()
        if seen != last:
            last, changed_at = seen, now
        elif now - changed_at >= seconds:
            break
    print_note(f"{describe()} made no progress for {seconds:g} s; it hangs here:")
    faulthandler.dump_traceback(file=stderr, all_threads=True)
    if is_main:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
    if not done.wait(SECONDS_TO_END):
        print_error(str(stalled(describe(), seconds)))
        os._exit(1)


def _stderr_file() -> int:
    """Returns the descriptor of stderr; a test or an application may have put something without one in its place."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2
