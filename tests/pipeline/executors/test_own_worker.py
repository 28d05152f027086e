"""The worker of a process is in it, but for tasks that may kill it, and for all that come after a death."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.executors.own_worker import OwnWorker
from pipeline.executors.serial import SerialExecutor
from tests.pipeline.executors import workers


@dataclass(frozen=True)
class Dangerous:
    """A task that may kill its worker."""

    number: int
    may_kill: bool = True


def where(worker: "OwnWorker[Any, Any]", task: Any) -> str:
    return "here" if worker.attempt(task).value == os.getpid() else "in a child"


def test_tasks_are_done_here_and_dangerous_ones_in_a_child() -> None:
    worker: OwnWorker[Any, Any] = OwnWorker(workers.NotesOverlap, 60.0)
    assert [where(worker, task) for task in (1, Dangerous(2), 3)] == ["here", "in a child", "here"]
    worker.close()


def test_after_a_death_everything_is_done_in_a_child() -> None:
    worker: OwnWorker[Any, Any] = OwnWorker(workers.DiesOfDangerous, 60.0)
    assert where(worker, 1) == "here"
    assert worker.attempt(Dangerous(2)).error is not None
    assert [where(worker, task) for task in (3, 4)] == ["in a child"] * 2
    worker.close()


def test_a_run_of_dangerous_tasks_alone_makes_no_worker_here(tmp_path: Path) -> None:
    outcomes = list(SerialExecutor().map(partial(workers.NotesMaking, tmp_path), [Dangerous(1), Dangerous(2)]))
    assert [outcome.error for outcome in outcomes] == [None, None]
    (made,) = tmp_path.iterdir()
    assert made.name != str(os.getpid())


def test_it_is_alive_as_long_as_its_child_has_a_task() -> None:
    worker: OwnWorker[Any, Any] = OwnWorker(workers.make_double, 60.0)
    assert worker.describe() == "the loading of the worker"
    worker.attempt(4)
    assert (worker.describe(), worker.sign_of_life()) == ("4", worker.sign_of_life())
    worker.close()


def test_a_child_that_is_needed_no_more_ends_before_the_worker_here_is_made(tmp_path: Path) -> None:
    worker: OwnWorker[Any, Any] = OwnWorker(partial(workers.ClosableWherever, tmp_path), 60.0)
    worker.attempt(Dangerous(1))
    assert list(tmp_path.iterdir()) == []
    worker.attempt(2)
    assert len(list(tmp_path.iterdir())) == 1
    worker.close()
    assert len(list(tmp_path.iterdir())) == 2
