"""Workers that the executor tests run, here and in actors, which import them by name."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from cache_schema.errors import EnvironmentProblem, LockedError, MismatchError


def double(number: int) -> int:
    return 2 * number


def make_double() -> Callable[[int], int]:
    return double


def make_picky() -> Callable[[int], int]:
    """Returns a worker that refuses 3 and fails at 4."""

    def picky(number: int) -> int:
        if number == 3:
            raise MismatchError("3 is not what was planned")
        if number == 4:
            raise KeyError("four")
        return double(number)

    return picky


def make_unlocked() -> Callable[[int], int]:
    """Returns a worker that finds the lock gone at 2."""

    def unlocked(number: int) -> int:
        if number == 2:
            raise LockedError("somebody else took over")
        return double(number)

    return unlocked


def make_refused() -> Callable[[int], int]:
    raise MismatchError("the probes do not agree")


def make_buggy() -> Callable[[int], int]:
    raise ZeroDivisionError("by zero")


def make_full_disk() -> Callable[[int], int]:
    def full(number: int) -> int:
        raise EnvironmentProblem("no space left")

    return full


class Closable:
    """Doubles numbers, and leaves a file behind when it is closed."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __call__(self, number: int) -> int:
        return double(number)

    def close(self) -> None:
        self._marker.touch()


class DiesOnce:
    """Kills its process at task 3, the first time that any process meets it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, number: int) -> int:
        marker = self._folder / "died"
        if number == 3 and not marker.exists():
            marker.touch()
            os._exit(1)
        return double(number)


class DiesAlways:
    """Kills its process at task 3, every time; counts how often."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, number: int) -> int:
        if number == 3:
            (self._folder / f"death-{os.getpid()}").touch()
            os._exit(1)
        return double(number)


class NotesOverlap:
    """Says which process did a task, slowly enough that two take part."""

    def __call__(self, number: int) -> int:
        time.sleep(0.3)
        return os.getpid()


class ImportsFromHere:
    """Imports a module that lies in the current folder of whoever started the run."""

    def __call__(self, number: int) -> int:
        from local_teacher import VALUE  # type: ignore[import-not-found]

        return VALUE + number
