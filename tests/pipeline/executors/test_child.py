"""A worker in a child dies alone; how it died is told, and the next task has another one."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cache_schema.errors import EnvironmentProblem, LockedError, MismatchError
from pipeline.executors.base import Failure, Outcome
from pipeline.executors.child import Child
from tests.corpora.processes import ROOT, environment, wait_for
from tests.pipeline.executors import workers


def child_of(make_worker: Any, stall_seconds: float = 60.0) -> Child[Any, Any]:
    return Child(make_worker, stall_seconds)


def test_one_process_does_task_after_task_and_is_not_this_one() -> None:
    child = child_of(workers.NotesOverlap)
    values = {child.attempt(number).value for number in range(2)}
    assert len(values) == 1 and values != {os.getpid()} and child.num_deaths == 0
    child.close()


@pytest.mark.parametrize(
    ("how", "told"), [("SIGSEGV",) * 2, ("SIGABRT",) * 2, ("SIGKILL",) * 2, (3, "exit code 3"), (0, "exit code 0")]
)
def test_a_death_names_the_signal_or_the_exit_code_and_the_next_task_goes_on(how: str | int, told: str) -> None:
    child = child_of(partial(workers.DiesOf, how))
    assert child.attempt(1) == Outcome(1, 2)
    assert child.attempt(3) == Outcome(3, error=Failure("WorkerDied", told))
    assert child.attempt(4) == Outcome(4, 8)
    assert child.num_deaths == 1
    child.close()


def test_errors_and_sys_exit_are_failures_and_no_deaths() -> None:
    child = child_of(workers.make_picky)
    refused, failed = child.attempt(3).error, child.attempt(4).error
    assert refused is not None and refused.exit_code == 4
    assert failed is not None and "in picky" in failed.trace
    assert child.num_deaths == 0
    child.close()


@pytest.mark.parametrize(
    ("make_worker", "error"),
    [
        (workers.make_refused, MismatchError),
        (workers.make_buggy, EnvironmentProblem),
        (workers.make_unlocked, LockedError),
        (workers.make_full_disk, EnvironmentProblem),
    ],
)
def test_what_ends_a_run_ends_it_from_a_child_too(make_worker: Any, error: type[Exception]) -> None:
    child = child_of(make_worker)
    with pytest.raises(error):
        child.attempt(2)
    child.close()


def test_a_child_without_progress_is_given_up_with_its_stack_shown(capfd: pytest.CaptureFixture[str]) -> None:
    child = child_of(partial(workers.Hangs, (3,)), stall_seconds=1.0)
    assert child.attempt(1).value == 2
    with pytest.raises(EnvironmentProblem, match="3 made no progress for 1 s"):
        child.attempt(3)
    child.close()
    assert "in hang" in capfd.readouterr().err


def test_progress_within_a_task_reaches_us_and_keeps_the_child_alive() -> None:
    child = child_of(partial(workers.SlowWithPulse, 2.5), stall_seconds=1.0)
    assert child.attempt(2).value == 4 and child.pulse > 0
    child.close()


def test_closing_closes_the_worker(tmp_path: Path) -> None:
    child = child_of(partial(workers.Closable, tmp_path / "closed"))
    child.attempt(1)
    assert not (tmp_path / "closed").exists()
    child.close()
    assert (tmp_path / "closed").exists()


PARENT = """
import sys
from functools import partial
from pathlib import Path
from pipeline.executors.child import Child
from tests.pipeline.executors import workers
Child(partial(workers.NotesItselfAndHangs, Path(sys.argv[1])), 60.0).attempt(1)
"""


def test_a_child_ends_with_its_parent_whatever_it_does(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(note)], cwd=ROOT, env=environment())
    wait_for(lambda: note.exists() and note.read_text(), seconds=30)
    pid = int(note.read_text())
    os.kill(pid, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.02)
