"""Workers that the executor tests run, here and in actors, which import them by name."""

import os
import signal
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


class ExitsWell:
    """Ends its process as if nothing were wrong, the first time that any process meets task 3."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, number: int) -> int:
        marker = self._folder / "ended"
        if number == 3 and not marker.exists():
            marker.touch()
            os._exit(0)
        return double(number)


class Hangs:
    """Hangs at some tasks for ever."""

    def __init__(self, tasks: tuple[int, ...]) -> None:
        self._tasks = tasks

    def __call__(self, number: int) -> int:
        if number in self._tasks:
            hang()
        return double(number)


class HangsOrWaits(Hangs):
    """Hangs at some tasks for ever; at the others it waits for a file, with progress all along."""

    def __init__(self, tasks: tuple[int, ...], file: Path) -> None:
        super().__init__(tasks)
        self.pulse = 0
        self._file = file

    def __call__(self, number: int) -> int:
        value = super().__call__(number)
        while not self._file.exists():
            time.sleep(0.1)
            self.pulse += 1
        return value


def hang() -> None:
    while True:
        time.sleep(0.1)


class SlowWithPulse:
    """Takes long for every task, but shows that it goes on."""

    def __init__(self, seconds: float) -> None:
        self.pulse = 0
        self._seconds = seconds

    def __call__(self, number: int) -> int:
        for _ in range(10):
            time.sleep(self._seconds / 10)
            self.pulse += 1
        return double(number)


class SlowNode:
    """Ten times slower in the first process that takes part; notes every task that is begun."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            (folder / "slow").touch(exist_ok=False)
            self._seconds = 2.0
        except FileExistsError:
            self._seconds = 0.2

    def __call__(self, number: int) -> int:
        (self._folder / f"begun-{number}-{os.getpid()}").touch()
        time.sleep(self._seconds)
        return double(number)


class OfTwoKinds:
    """Is of another kind in every process."""

    def __init__(self) -> None:
        self.kind = f"device {os.getpid()}"

    def __call__(self, number: int) -> int:
        time.sleep(0.2)
        return double(number)


class SaysThreads:
    """Says how many threads its numeric libraries have."""

    def __call__(self, number: int) -> str | None:
        return os.environ.get("OMP_NUM_THREADS")


class HoldsTheInterpreter:
    """Computes in foreign code that lets no other thread run."""

    def __call__(self, number: int) -> int:
        import re

        re.match(r"(a+)+$", "a" * 60 + "b")
        return double(number)


class DiesOf:
    """Ends its process at task 3, by a signal or with an exit code."""

    def __init__(self, how: str | int) -> None:
        self._how = how

    def __call__(self, number: int) -> int:
        if number == 3 and isinstance(self._how, int):
            os._exit(self._how)
        elif number == 3:
            signal.raise_signal(getattr(signal, str(self._how)))
        return double(number)


class DiesOfDangerous:
    """Says which process did a task; one that says that it may kill does."""

    def __call__(self, task: object) -> int:
        if getattr(task, "may_kill", False):
            os._exit(1)
        return os.getpid()


class NotesMaking:
    """Leaves a file with the number of the process that makes it."""

    def __init__(self, folder: Path) -> None:
        (folder / str(os.getpid())).touch()

    def __call__(self, task: object) -> int:
        return 0


class NotesItselfAndHangs:
    """Writes the number of its process to a file, and hangs."""

    def __init__(self, note: Path) -> None:
        self._note = note

    def __call__(self, number: int) -> int:
        self._note.write_text(str(os.getpid()))
        hang()
        return number


class ClosableWherever:
    """Does anything, and leaves a file with the number of its process behind when it is closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, task: object) -> int:
        return 0

    def close(self) -> None:
        (self._folder / str(os.getpid())).touch()
