"""Ctrl-C and a polite kill end the run in order; a second one ends it at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. What is committed stays; a rerun goes on from there.

    Attributes:
        exit_code: 128 plus the number of the signal, as shells do: 130 for Ctrl-C, 143 for a kill.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


_first_seen = False


def _on_signal(signal_number: int, _frame: FrameType | None) -> None:
    global _first_seen
    if _first_seen:
        # Not sys.exit: that would wait for threads, and whoever asks twice does not want to wait.
        os._exit(128 + signal_number)
    _first_seen = True
    raise Interrupted(signal_number)


def install() -> None:
    """Makes the first signal of `HANDLED` raise `Interrupted`, and the second end the process without more ado."""
    global _first_seen
    _first_seen = False
    for number in HANDLED:
        # nohup and some schedulers start us with a signal ignored on purpose.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


@contextmanager
def kept() -> Iterator[None]:
    """Restores at its end the handlers that stood at its start; for libraries that put their own in place."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
