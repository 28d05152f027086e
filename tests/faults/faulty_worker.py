"""A worker of extract whose process dies at a chosen point of a chosen part, once."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from cache_schema import atomic
from cache_schema.errors import MismatchError
from stages.extract.worker import PartWorker
from stages.images.pool import DecodePool
from stages.parts.pending import PartReport, PartTask
from tests.corpora.stub_teacher import StubTeacher

# decode: between two pictures. forward: in the teacher. exit: there, but by an exit with code 0. write N: at the N-th
# durable operation of the commit, the last ones being those between the data and the record. reply: committed, but
# nobody was told.
POINTS = ("decode", "forward", "exit", "reply", *(f"write {number}" for number in (1, 6, 11, 16, 17, 19)))


def faults_for(tasks: Sequence[PartTask], seed: int | None = None) -> dict[str, str]:
    """Returns faults by the name of the task: each point once, or, with a seed, one drawn for every task."""
    rng = random.Random(seed)
    chosen = {}
    for number, task in enumerate(tasks if seed is not None else tasks[: len(POINTS)]):
        point = POINTS[number] if seed is None else rng.choice(POINTS)
        if seed is not None and point.startswith("write"):
            point = f"write {rng.randint(1, 20)}"
        chosen[str(task)] = "forward" if point == "decode" and task.modality == "text" else point
    return chosen


class FaultyWorker:
    """Does parts as `make_worker`'s worker does, and dies where `faults` says, the first time any process gets there.

    `folder` gets a file for every fault that struck, and `log` with a line for every part that was begun or done.
    """

    def __init__(self, make_worker: Callable[[], PartWorker], faults: Mapping[str, str], folder: Path) -> None:
        self._worker = make_worker()
        self._faults = faults
        self._folder = folder

    @property
    def pulse(self) -> int:
        return self._worker.pulse

    def close(self) -> None:
        self._worker.close()

    def __call__(self, task: PartTask) -> PartReport:
        self._log("begin", task)
        fault = self._faults.get(str(task), "")
        if fault and not (self._folder / f"struck {task}").exists():
            self._arm(fault, task)
        report = self._worker(task)
        atomic.os = os  # type: ignore[assignment]
        if fault == "reply" and not (self._folder / f"struck {task}").exists():
            self._die(task)
        self._log("end", task)
        return report

    def _arm(self, fault: str, task: PartTask) -> None:
        def die(*_: Any, **__: Any) -> NoReturn:
            self._die(task, 0 if fault == "exit" else None)

        if fault == "decode":
            whole = DecodePool.map

            def cut(pool: DecodePool, payloads: Any) -> Iterator[Any]:
                prepared = whole(pool, payloads)
                yield next(prepared)
                die()

            DecodePool.map = cut  # type: ignore[method-assign, assignment]
        elif fault in ("forward", "exit"):
            StubTeacher.encode_images = die  # type: ignore[method-assign]
            StubTeacher.encode_texts = die  # type: ignore[method-assign]
        elif fault.startswith("write"):
            atomic.os = _StruckSystem(int(fault.split()[1]), die)  # type: ignore[assignment]

    def _die(self, task: PartTask, exit_code: int | None = None) -> NoReturn:
        (self._folder / f"struck {task}").touch()
        if exit_code is not None:
            os._exit(exit_code)
        os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(1)

    def _log(self, what: str, task: PartTask) -> None:
        with open(self._folder / "log", "a") as log:
            log.write(f"{what} {os.getpid()} {task}\n")


class RefusingWorker(FaultyWorker):
    """Cannot be made on the node whose raylet is process `raylet`."""

    WHY = "its packages are another year's"

    def __init__(self, make_worker: Callable[[], PartWorker], raylet: int) -> None:
        if os.getppid() == raylet:
            raise MismatchError(self.WHY)
        super().__init__(make_worker, {}, Path(os.devnull))

    def _log(self, what: str, task: PartTask) -> None:
        time.sleep(0.05)


class _StruckSystem:
    """Stands for `os` where files are published, and calls `die` at the n-th durable call."""

    def __init__(self, at: int, die: Callable[[], NoReturn]) -> None:
        self._left = at
        self._die = die

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return partial(self._counted, call) if name in ("open", "fsync", "replace") else call

    def _counted(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            self._die()
        return call(*args, **kwargs)
