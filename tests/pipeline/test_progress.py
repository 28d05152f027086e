"""Progress is a bar on a terminal and a few lines elsewhere, and never a reason to fail."""

import io

import pytest

from pipeline.progress import PlainLines, describe, duration, open_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(*, seconds: float, steps: int) -> list[str]:
    """Returns what is written about work of `steps` equal steps that takes `seconds`."""
    stream, clock = io.StringIO(), Clock()
    progress = PlainLines("extract", stream, clock)
    for done in range(steps + 1):
        clock.now = seconds * done / steps
        progress(done, steps, "rows")
    return stream.getvalue().splitlines()


def test_lines_come_at_every_tenth_but_not_more_often_than_every_5_seconds() -> None:
    assert len(lines_of(seconds=100, steps=1000)) == 10
    assert len(lines_of(seconds=20, steps=1000)) == 4
    assert lines_of(seconds=1, steps=1000) == []


def test_long_work_says_something_every_minute() -> None:
    assert len(lines_of(seconds=36_000, steps=100_000)) == pytest.approx(600, rel=0.02)


def test_line_shows_share_rate_time_left_and_note() -> None:
    assert describe(4096, 20_000, "rows", 312.0, "slowest: decode") == (
        "4,096 of 20,000 rows (20 %), 312 rows/s, 0:51 left, slowest: decode"
    )
    assert describe(0, 0, "rows", 0.0) == "0 of 0 rows (0 %)"
    assert (duration(59.6), duration(3725)) == ("1:00", "1:02:05")


def test_rate_of_a_resumed_run_counts_only_what_this_run_did() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainLines("extract", stream, clock)
    progress(900, 1000, "rows")
    clock.now = 10.0
    progress(1000, 1000, "rows")
    assert "10 rows/s" in stream.getvalue()


def test_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    stream = Terminal()
    with open_progress("extract", stream=stream) as progress:
        for done in range(0, 101, 20):
            progress(done, 100, "rows", "[red]not markup[/red] \x1b[2J")
    assert "rows" in stream.getvalue() and "left" in stream.getvalue()
    assert "[red]not markup" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


def test_quiet_shows_nothing() -> None:
    stream = Terminal()
    with open_progress("extract", quiet=True, stream=stream) as progress:
        progress(1, 2, "rows")
    assert stream.getvalue() == ""


def test_nobody_reading_the_progress_does_not_stop_the_work() -> None:
    clock = Clock()
    progress = PlainLines("extract", Gone(), clock)
    progress(0, 10, "rows")
    clock.now = 60.0
    progress(10, 10, "rows")
