"""Seconds are counted for the stage that took them, once."""

import time
from collections.abc import Iterator

import pytest

from stages.parts.worker import StageClock


class Hands:
    """The hands of a clock that somebody turns."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def turn(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(time, "perf_counter", lambda: hands.seconds)
    return hands


def read(count: int, hands: Hands, clock: StageClock | None = None) -> Iterator[int]:
    """Yields numbers that take 1 second each, and another that `clock` counts as reading."""
    for number in range(count):
        hands.turn(1)
        if clock is not None:
            with clock.measured("read"):
                hands.turn(1)
        yield number


def test_items_are_timed_while_they_come_and_not_while_they_are_used(hands: Hands) -> None:
    clock = StageClock("read", "forward", "write")
    for _ in clock.timed("read", read(3, hands)):
        with clock.measured("forward"):
            hands.turn(10)
        hands.turn(1000)
    assert clock.seconds == {"read": 3, "forward": 30, "write": 0}


def test_what_a_stage_inside_another_took_is_counted_there_alone(hands: Hands) -> None:
    clock = StageClock("read", "decode")
    assert list(clock.timed("decode", read(3, hands, clock), minus="read")) == [0, 1, 2]
    with clock.measured("decode", minus="read"):
        next(read(1, hands, clock))
    assert clock.seconds == {"read": 4, "decode": 4}


def test_a_record_keeps_what_was_spent_before_writing_and_a_restart_counts_from_zero(hands: Hands) -> None:
    clock = StageClock("read", "write")
    for stage in ("read", "write"):
        with clock.measured(stage):
            hands.turn(1.23456)
    kept = clock.seconds
    assert clock.before_writing() == {"read": 1.235}
    clock.restart()
    assert clock.seconds == {"read": 0, "write": 0} and kept["write"] == pytest.approx(1.23456)


def test_an_error_passes_through_and_its_seconds_count(hands: Hands) -> None:
    clock = StageClock("read")

    def failing() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    items = clock.timed("read", failing())
    assert next(items) == 1
    with pytest.raises(OSError, match="gone"):
        next(items)
    with pytest.raises(OSError, match="gone"), clock.measured("read"):
        hands.turn(2)
        raise OSError("gone")
    assert clock.seconds == {"read": 2}
