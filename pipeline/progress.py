"""Shows how far a stage is: a bar on a terminal, a plain line now and then elsewhere. Always on stderr.

Stages call `progress(done, total, unit, note)`; a change of `unit` or `total` begins a new bar.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from cache_schema.progress import Progress, silent
from pipeline.output import printable

SECONDS_BETWEEN_LINES = 5.0
LONGEST_SILENCE_SECONDS = 60.0
SHARE_BETWEEN_LINES = 0.1


@contextmanager
def open_progress(title: str, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Progress]:
    """Yields the callback for one command called `title`; a bar is removed from the terminal at the end."""
    stream = stream or sys.stderr
    if quiet:
        yield silent
    elif stream.isatty():
        with _bar(title, stream) as progress:
            yield progress
    else:
        yield PlainLines(title, stream)


class PlainLines:
    """Progress as lines of text: one per tenth of the work, but at most one in 5 seconds and at least one a minute.

    A stage that takes no time at all has none; the command's summary says it anyway.
    """

    def __init__(self, title: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._stream = stream
        self._clock = clock
        self._stage: tuple[str, int] | None = None

    def __call__(self, done: int, total: int, unit: str, note: str = "") -> None:
        now = self._clock()
        if self._stage != (unit, total):
            self._stage = (unit, total)
            self._start, self._start_done = now, done
            self._shown_at, self._shown_done = now, done
            return
        silence = now - self._shown_at
        much = done == total or done - self._shown_done >= SHARE_BETWEEN_LINES * total
        if silence < (SECONDS_BETWEEN_LINES if much else LONGEST_SILENCE_SECONDS):
            return
        self._shown_at, self._shown_done = now, done
        rate = (done - self._start_done) / max(now - self._start, 1e-9)
        _write_line(self._stream, f"{self._title}: {describe(done, total, unit, rate, note)}")


def describe(done: int, total: int, unit: str, rate_per_s: float, note: str = "") -> str:
    """Returns `4,096 of 20,000 rows (20 %), 312 rows/s, 0:51 left, note`."""
    parts = [f"{done:,} of {total:,} {unit} ({100 * done // max(total, 1)} %)"]
    if rate_per_s > 0:
        parts.append(f"{_rate(rate_per_s)} {unit}/s")
        if done < total:
            parts.append(f"{duration((total - done) / rate_per_s)} left")
    if note:
        parts.append(note)
    return printable(", ".join(parts))


def duration(seconds: float) -> str:
    """Returns `seconds` as m:ss, or h:mm:ss from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate(rate_per_s: float) -> str:
    return f"{rate_per_s:,.0f}" if rate_per_s >= 100 else f"{rate_per_s:.3g}"


def _write_line(stream: TextIO, line: str) -> None:
    # Nobody listening to the progress is no reason to stop the work.
    with contextlib.suppress(OSError):
        print(line, file=stream, flush=True)


@contextmanager
def _bar(title: str, stream: TextIO) -> Iterator[Progress]:
    from rich import progress as bars
    from rich.console import Console
    from rich.markup import escape

    columns: tuple[Any, ...] = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=24),
        bars.TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TextColumn("{task.fields[note]}", style="dim"),
    )
    with bars.Progress(*columns, console=Console(file=stream), transient=True) as drawn:
        stages: dict[tuple[str, int], tuple[bars.TaskID, float, int]] = {}

        def progress(done: int, total: int, unit: str, note: str = "") -> None:
            if (unit, total) not in stages:
                for task, _, _ in stages.values():
                    drawn.update(task, visible=False)
                task = drawn.add_task(title, total=total, unit=escape(printable(unit)), note="", rate="")
                stages[unit, total] = (task, time.monotonic(), done)
            task, start, start_done = stages[unit, total]
            rate = (done - start_done) / max(time.monotonic() - start, 1e-9)
            shown = f"{_rate(rate)}/s, {duration((total - done) / rate)} left" if rate > 0 else ""
            drawn.update(task, completed=done, note=escape(printable(note)), rate=shown, visible=True)

        yield progress
