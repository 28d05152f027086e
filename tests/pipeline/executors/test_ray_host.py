"""The inside of an actor, without Ray: it makes one worker, and answers with values whatever that worker does."""

import os
import pickle
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cache_schema.errors import EnvironmentProblem, LockedError, MismatchError
from pipeline.executors.base import Outcome
from pipeline.executors.ray_host import Host, Place, Stopped
from tests.pipeline.executors import workers


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder where the user stands; this process gets its own folder and paths back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return str(tmp_path)


def test_it_works_and_imports_first_where_the_user_stands(tmp_path: Path) -> None:
    there = tmp_path / "там"
    there.mkdir()
    before = list(sys.path)
    Host(str(there))
    assert os.getcwd() == str(there) and sys.path == [str(there), *before]
    Host(str(there))
    assert sys.path == [str(there), *before], "once is enough"


def test_a_folder_that_this_machine_lacks_is_no_reason_to_stop(folder: str, tmp_path: Path) -> None:
    Host(str(tmp_path / "none"))
    assert os.getcwd() == folder


def test_its_place_is_ray_s_node_and_this_process(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_node_id=lambda: "abc")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=lambda: context))  # type: ignore[arg-type]
    place = Host(folder).place()
    assert (place.node_id, place.pid, place.host) == ("abc", os.getpid(), os.uname().nodename)
    assert str(Place("abc", "alpha", 7)) == "node alpha (process 7)"


def test_joining_makes_the_worker_and_tells_its_kind(folder: str) -> None:
    assert Host(folder).join(workers.make_double) == ""
    assert Host(folder).join(workers.OfTwoKinds) == f"device {os.getpid()}"


def test_a_worker_that_cannot_be_made_is_an_answer_and_no_error(folder: str) -> None:
    refused = Host(folder).join(workers.make_refused)
    assert isinstance(refused, Stopped) and isinstance(refused.error, MismatchError)
    assert str(refused.error) == "the probes do not agree"
    buggy = Host(folder).join(workers.make_buggy)
    assert isinstance(buggy, Stopped) and isinstance(buggy.error, EnvironmentProblem)
    assert "ZeroDivisionError: by zero" in str(buggy.error)


def test_a_task_that_fails_is_its_outcome_and_one_that_stops_the_run_another_answer(folder: str) -> None:
    host = Host(folder)
    host.join(workers.make_picky)
    assert host.attempt(2) == Outcome(2, 4)
    failed = host.attempt(4)
    assert isinstance(failed, Outcome) and failed.error is not None and failed.error.kind == "KeyError"
    host.join(workers.make_unlocked)
    stopped = host.attempt(2)
    assert isinstance(stopped, Stopped) and isinstance(stopped.error, LockedError)


def test_what_stops_a_run_survives_the_journey_with_its_traceback_as_a_note() -> None:
    try:
        try:
            raise OSError("28")
        except OSError as error:
            raise EnvironmentProblem("no space left", lambda: None) from error  # cannot travel as it is
    except EnvironmentProblem as error:
        stopped = Stopped.by(error)
    arrived: Stopped = pickle.loads(pickle.dumps(stopped))  # noqa: S301 - our own bytes, as Ray sends them
    assert type(arrived.error) is EnvironmentProblem and arrived.error.__cause__ is None
    (note,) = arrived.error.__notes__
    assert "OSError: 28" in note and "Traceback" in note


def test_every_task_is_a_pulse_however_it_ends_and_so_is_what_the_worker_counts(folder: str) -> None:
    host = Host(folder)
    assert host.pulse() == (0, 0)
    host.join(workers.make_picky)
    for task in (1, 3, 4):
        host.attempt(task)
    assert host.pulse() == (3, 0)
    host.join(workers.make_full_disk)
    host.attempt(1)
    assert host.pulse() == (4, 0)
    slow = workers.SlowWithPulse(0.0)
    host.join(lambda: slow)
    host.attempt(1)
    assert host.pulse() == (5, 10)


def test_stacks_show_where_every_other_thread_is(folder: str) -> None:
    begun, end = threading.Event(), threading.Event()

    def deep_in_thought() -> None:
        begun.set()
        end.wait(60)

    thread = threading.Thread(target=deep_in_thought, name="thinker")
    thread.start()
    try:
        assert begun.wait(60)
        shown = Host(folder).stacks()
    finally:
        end.set()
        thread.join()
    assert "thread thinker:\n" in shown and "in deep_in_thought" in shown
    assert "in test_stacks_show" not in shown


def test_closing_closes_the_worker_when_there_is_one_that_can_be(folder: str, tmp_path: Path) -> None:
    host: Any = Host(folder)
    host.close()
    host.join(workers.make_double)
    host.close()
    host.join(lambda: workers.Closable(tmp_path / "closed"))
    assert not (tmp_path / "closed").exists()
    host.close()
    assert (tmp_path / "closed").exists()
