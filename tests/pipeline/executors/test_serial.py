"""The serial executor: failures are values, what must stop stops, and nothing is made before it is needed."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cache_schema.errors import EnvironmentProblem, LockedError, MismatchError
from pipeline.executors.serial import SerialExecutor
from tests.pipeline.executors import workers


def test_serial_executor_yields_outcomes_in_the_order_of_the_tasks() -> None:
    outcomes = list(SerialExecutor().map(workers.make_double, range(4)))
    assert [(o.task, o.value, o.error) for o in outcomes] == [(0, 0, None), (1, 2, None), (2, 4, None), (3, 6, None)]


def test_failing_task_is_a_value_and_the_others_go_on() -> None:
    outcomes = {o.task: o for o in SerialExecutor().map(workers.make_picky, range(6))}
    assert [task for task, o in outcomes.items() if o.error] == [3, 4]
    assert outcomes[5].value == 10
    refused, failed = outcomes[3].error, outcomes[4].error
    assert refused and (refused.kind, str(refused)) == ("MismatchError", "3 is not what was planned")
    assert refused.exit_code == 4
    assert failed and (failed.kind, str(failed), failed.exit_code) == ("KeyError", "KeyError: 'four'", 3)
    assert "in picky" in failed.trace


def test_worker_is_not_made_when_there_is_no_task() -> None:
    assert list(SerialExecutor().map(workers.make_refused, [])) == []


def test_tasks_are_read_one_by_one() -> None:
    read = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    outcomes = SerialExecutor().map(workers.make_double, tasks())
    next(outcomes)
    next(outcomes)
    assert read == [0, 1]


def test_worker_that_cannot_be_made_ends_the_run_with_the_error_that_says_why() -> None:
    with pytest.raises(MismatchError, match="probes do not agree"):
        list(SerialExecutor().map(workers.make_refused, range(3)))


def test_bug_in_making_a_worker_is_an_environment_problem_that_names_it() -> None:
    with pytest.raises(EnvironmentProblem, match="ZeroDivisionError: by zero"):
        list(SerialExecutor().map(workers.make_buggy, range(3)))


@pytest.mark.parametrize(
    ("make_worker", "error"), [(workers.make_unlocked, LockedError), (workers.make_full_disk, EnvironmentProblem)]
)
def test_lost_lock_and_full_disk_end_the_run(make_worker: Callable[[], Callable[[int], int]], error: type) -> None:
    read = []
    with pytest.raises(error):
        for outcome in SerialExecutor().map(make_worker, range(5)):
            read.append(outcome.task)
    assert read in ([0, 1], [])


def test_keyboard_interrupt_is_no_failure_of_a_task() -> None:
    def interrupted(number: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(SerialExecutor().map(lambda: interrupted, range(3)))


def test_worker_is_closed_also_when_the_caller_stops_early(tmp_path: Path) -> None:
    outcomes = SerialExecutor().map(partial(workers.Closable, tmp_path / "closed"), range(3))
    next(outcomes)
    assert not (tmp_path / "closed").exists()
    outcomes.close()  # type: ignore[attr-defined]
    assert (tmp_path / "closed").exists()
