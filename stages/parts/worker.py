"""A worker over parts: called with one part after the other, watched, timed, and closed at the end."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self, TypeVar, cast

from stages.parts.pending import PartReport, PartTask

Item = TypeVar("Item")

_END: Final = object()


class StageClock:
    """Counts the seconds that each stage of a part takes.

    Attributes:
        seconds: stage -> seconds since the last restart.
    """

    def __init__(self, *stages: str) -> None:
        self._stages = stages
        self.restart()

    def restart(self) -> None:
        """Counts from zero."""
        self.seconds = dict.fromkeys(self._stages, 0.0)

    def before_writing(self) -> dict[str, float]:
        """Returns what a record keeps: the seconds of all stages but writing, which is not over yet."""
        return {stage: round(value, 3) for stage, value in self.seconds.items() if stage != "write"}

    @contextmanager
    def measured(self, stage: str, *, minus: str | None = None) -> Iterator[None]:
        """Adds the time spent inside to `stage`, less what was meanwhile added to the stage `minus`."""
        start = self._now(minus)
        try:
            yield
        finally:
            self.seconds[stage] += self._now(minus) - start

    def timed(self, stage: str, items: Iterator[Item], *, minus: str | None = None) -> Iterator[Item]:
        """Yields `items`; adds to `stage` the time they take to come, as `measured`, not the time their user takes."""
        while True:
            start = self._now(minus)
            item = next(items, _END)
            self.seconds[stage] += self._now(minus) - start
            if item is _END:
                return
            yield cast(Item, item)

    def _now(self, minus: str | None) -> float:
        return time.perf_counter() - (self.seconds[minus] if minus else 0.0)


class PartsWorker(ABC):
    """Callable that commits one part after the other. A context manager that closes at its end.

    Attributes:
        pulse: a number that changes as it goes on within a part, for whoever watches it.

    Args:
        progress: called with the rows of the part under way that are done so far; for a worker in the process that
            shows it.
    """

    def __init__(self, *, progress: Callable[[int], None] | None) -> None:
        self.pulse = 0
        self._progress = progress

    @abstractmethod
    def __call__(self, task: PartTask) -> PartReport:
        """Reads, encodes and commits what is pending of the part of `task`. Doing it twice gives the same files."""

    @abstractmethod
    def close(self) -> None:
        """Ends the processes that run beside it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show(self, num_rows: int) -> None:
        """Says that so many rows of the part are done."""
        self.pulse += 1
        if self._progress is not None:
            self._progress(num_rows)
