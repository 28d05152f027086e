"""A worker is made, called and closed behind one boundary, at which an error becomes a value or ends the run."""

import pickle
from collections.abc import Callable

import pytest

from cache_schema.errors import (
    DamagedError,
    DivergedError,
    EnvironmentProblem,
    LockedError,
    MismatchError,
    PipelineError,
    UnfinishedError,
    UsageError,
)
from pipeline.executors.base import Failure, Outcome, attempt, closing_if_closable, pulse_of, start


def raising(error: BaseException) -> Callable[..., int]:
    def worker(*task: object) -> int:
        raise error

    return worker


def test_a_task_that_is_done_has_its_value_and_no_error() -> None:
    assert attempt(lambda number: 2 * number, 21) == Outcome(21, 42, None)


@pytest.mark.parametrize(
    "error", [ValueError("no"), MismatchError("no"), DamagedError("no"), MemoryError("no"), AssertionError("no")]
)
def test_any_error_of_one_task_becomes_its_failure_with_kind_words_and_trace(error: Exception) -> None:
    outcome = attempt(raising(error), 7)
    assert (outcome.task, outcome.value) == (7, None) and outcome.error is not None
    assert (outcome.error.kind, outcome.error.message) == (type(error).__name__, "no")
    assert outcome.error.trace.startswith("Traceback") and "in worker" in outcome.error.trace


class Panic(BaseException):
    """As Rust raises it: no Exception."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(3), "SystemExit: something in it called sys.exit(3): raise an error there that says what is wrong"),
        (SystemExit(), "SystemExit: something in it called sys.exit(): raise an error there that says what is wrong"),
        (Panic("index out of bounds"), "Panic: index out of bounds"),
    ],
)
def test_a_worker_that_calls_sys_exit_or_panics_fails_its_task_and_ends_no_run(error: BaseException, said: str) -> None:
    outcome = attempt(raising(error), 7)
    assert (outcome.task, outcome.value, str(outcome.error)) == (7, None, said)
    assert outcome.error is not None and outcome.error.exit_code == 3 and "in worker" in outcome.error.trace


@pytest.mark.parametrize("error", [SystemExit(0), Panic("at load")])
def test_a_worker_that_calls_sys_exit_while_it_is_made_is_one_that_cannot_be_made(error: BaseException) -> None:
    with pytest.raises(EnvironmentProblem, match=r"no worker can be made \((something in it called|Panic)"):
        start(raising(error))


@pytest.mark.parametrize("error", [LockedError("taken"), EnvironmentProblem("full"), KeyboardInterrupt()])
def test_what_makes_further_work_pointless_passes_the_boundary_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed:
        attempt(raising(error), 7)
    assert passed.value is error


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (MismatchError("x"), 4),
        (DamagedError("x"), 4),
        (UnfinishedError("x"), 4),
        (UsageError("x"), 3),
        (DivergedError("x"), 3),
        (KeyError("x"), 3),
    ],
)
def test_only_a_refused_input_is_not_worth_another_run(error: Exception, exit_code: int) -> None:
    assert Failure.of(error).exit_code == exit_code


def test_a_failure_tells_its_class_unless_the_words_are_meant_for_people_already() -> None:
    assert str(Failure.of(KeyError("four"))) == "KeyError: 'four'"
    assert str(Failure.of(DamagedError("a.tar is cut"))) == "a.tar is cut"
    assert str(Failure("", "it hangs")) == "it hangs"
    assert str(Failure("WorkerDied", "three times")) == "WorkerDied: three times"


def test_a_failure_can_leave_its_process_and_the_cause_of_its_error_is_in_the_trace() -> None:
    def worker(task: int) -> int:
        try:
            raise OSError("ключ")
        except OSError as error:
            raise ValueError(lambda: None) from error  # cannot be pickled itself

    outcome = attempt(worker, 1)
    assert pickle.loads(pickle.dumps(outcome)) == outcome and outcome.error is not None  # noqa: S301 - our own
    assert "OSError: ключ" in outcome.error.trace and "direct cause" in outcome.error.trace


def test_making_a_worker_passes_on_what_people_can_act_on_and_names_any_other_error() -> None:
    refused = MismatchError("the probes do not agree")
    with pytest.raises(MismatchError) as passed:
        start(raising(refused))
    assert passed.value is refused
    with pytest.raises(EnvironmentProblem) as named:
        start(raising(ImportError("no module named x")))
    assert str(named.value) == (
        "no worker can be made (ImportError: no module named x): mend what the message names, or run with --debug to "
        "see where it comes from"
    )
    assert isinstance(named.value, PipelineError) and isinstance(named.value.__cause__, ImportError)
    assert start(lambda: abs)(-3) == 3


class Worker:
    """Keeps a pulse and can be closed, so many times."""

    def __init__(self) -> None:
        self.pulse = 3.0
        self.num_closed = 0

    def close(self) -> None:
        self.num_closed += 1


def test_the_pulse_is_a_whole_number_and_0_where_a_worker_keeps_none() -> None:
    assert pulse_of(Worker()) == 3 and type(pulse_of(Worker())) is int
    assert pulse_of(abs) == 0 and pulse_of(None) == 0


def test_a_worker_is_closed_once_also_after_an_error_and_only_when_it_can_be() -> None:
    worker = Worker()
    with pytest.raises(ValueError, match="no"), closing_if_closable(worker) as same:
        assert same is worker and worker.num_closed == 0
        raise ValueError("no")
    assert worker.num_closed == 1
    with closing_if_closable(abs) as same:
        assert same is abs
    worker.close = None  # type: ignore[method-assign, assignment]
    with closing_if_closable(worker) as same:
        assert same is worker
