"""Ctrl-C and a polite kill end the run in order; a second one ends it at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A step that takes longer than this is given up; what was saved before it stays.
SECONDS_TO_STOP = 20.0

_received: int | None = None


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. What is committed stays; a rerun goes on from there."""


def exit_code() -> int:
    """Returns 128 plus the number of the signal that arrived, as shells do: 130 for Ctrl-C, 143 for a kill."""
    return 128 + (_received or signal.SIGINT)


def install() -> None:
    """Makes the first signal of `HANDLED` raise `Interrupted`, and the second end the process without more ado."""
    global _received
    _received = None
    for number in HANDLED:
        # nohup and some schedulers start us with a signal ignored on purpose.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise_on_signal)


@contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether a signal arrived, for work that wants to save its state by itself.

    Inside, the first signal does not raise unless the work goes on for `SECONDS_TO_STOP`; the second is immediate.
    Does nothing where `install` was not called, as in a test or another program: there the function says no.
    """
    if signal.getsignal(signal.SIGINT) is not _raise_on_signal:
        yield lambda: False
        return
    with kept():
        for number in HANDLED:
            if signal.getsignal(number) is _raise_on_signal:
                signal.signal(number, _note_signal)
        signal.signal(signal.SIGALRM, _give_up)
        try:
            yield lambda: _received is not None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def kept() -> Iterator[None]:
    """Restores at its end the handlers that stood at its start; for libraries that put their own in place."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (*HANDLED, signal.SIGALRM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _receive(signal_number: int) -> None:
    global _received
    if _received is not None:
        # Not sys.exit: that would wait for threads, and whoever asks twice does not want to wait.
        os._exit(128 + signal_number)
    _received = signal_number


def _raise_on_signal(signal_number: int, _frame: FrameType | None) -> None:
    _receive(signal_number)
    raise Interrupted(signal.Signals(signal_number).name)


def _note_signal(signal_number: int, _frame: FrameType | None) -> None:
    _receive(signal_number)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_STOP)


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted("no chance to save within reasonable time")
