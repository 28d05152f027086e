"""The Ray executor gives what the serial one gives, also when its processes die."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cache_schema.errors import EnvironmentProblem, LockedError, MismatchError
from pipeline.executors.base import Outcome
from pipeline.executors.config import ExecutorConfig, WorkerRange
from pipeline.executors.ray_executor import RayExecutor
from pipeline.executors.ray_pool import ATTEMPTS_PER_TASK
from pipeline.executors.serial import SerialExecutor
from tests.pipeline.executors import workers

pytestmark = pytest.mark.usefixtures("ray_cluster")


def on_ray(num_workers: int, **settings: Any) -> RayExecutor:
    return RayExecutor(ExecutorConfig(name="ray", workers=WorkerRange(num_workers, num_workers), **settings))


def by_task(outcomes: list[Outcome]) -> list[tuple]:
    return sorted((o.task, o.value, o.error and (o.error.kind, str(o.error), o.error.exit_code)) for o in outcomes)


def test_outcomes_equal_those_of_the_serial_executor() -> None:
    tasks = range(9)
    parallel = list(on_ray(2).map(workers.make_picky, tasks))
    assert by_task(parallel) == by_task(list(SerialExecutor().map(workers.make_picky, tasks)))


def test_two_workers_are_two_processes() -> None:
    outcomes = list(on_ray(2).map(workers.NotesOverlap, range(6)))
    assert len({o.value for o in outcomes}) == 2


def test_worker_that_cannot_be_made_ends_the_run_at_once_with_the_same_error() -> None:
    with pytest.raises(MismatchError, match="the probes do not agree") as refusal:
        list(on_ray(1).map(workers.make_refused, range(100)))
    assert str(refusal.value) == "the probes do not agree"


def test_lost_lock_ends_the_run() -> None:
    with pytest.raises(LockedError, match="somebody else took over"):
        list(on_ray(1).map(workers.make_unlocked, range(5)))


def test_task_of_a_killed_worker_is_done_by_a_fresh_one(tmp_path: Path) -> None:
    outcomes = list(on_ray(2).map(partial(workers.DiesOnce, tmp_path), range(8)))
    assert by_task(outcomes) == [(number, 2 * number, None) for number in range(8)]
    assert (tmp_path / "died").exists()


def test_task_that_kills_every_worker_fails_alone_after_three_attempts(tmp_path: Path) -> None:
    outcomes = {o.task: o for o in on_ray(2).map(partial(workers.DiesAlways, tmp_path), range(8))}
    assert sorted(outcomes) == list(range(8))
    assert [task for task, o in outcomes.items() if o.error] == [3]
    assert outcomes[3].error and "died 3 times" in str(outcomes[3].error)
    assert len(list(tmp_path.glob("death-*"))) == ATTEMPTS_PER_TASK


def test_worker_is_closed_at_the_end(tmp_path: Path) -> None:
    list(on_ray(1).map(partial(workers.Closable, tmp_path / "closed"), range(3)))
    assert (tmp_path / "closed").exists()


def test_module_in_the_current_folder_can_be_imported_in_an_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local_teacher.py").write_text("VALUE = 40\n")
    monkeypatch.chdir(tmp_path)
    assert [o.value for o in on_ray(1).map(workers.ImportsFromHere, [2])] == [42]


def test_worker_that_ends_with_exit_code_0_is_a_loss_like_any_other(tmp_path: Path) -> None:
    outcomes = list(on_ray(2).map(partial(workers.ExitsWell, tmp_path), range(6)))
    assert by_task(outcomes) == [(number, 2 * number, None) for number in range(6)]
    assert (tmp_path / "ended").exists()


def test_hanging_task_fails_alone_with_the_stack_shown_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        (tmp_path / "said").touch()

    executor = RayExecutor(ExecutorConfig(name="ray", workers=WorkerRange(2, 2), stall_seconds=4), notice=hear)
    make_worker = partial(workers.HangsOrWaits, (0,), tmp_path / "said")
    outcomes = {o.task: o for o in executor.map(make_worker, range(3))}
    assert sorted(outcomes) == [0, 1, 2]
    assert [task for task, o in outcomes.items() if o.error] == [0]
    assert "0 on node" in str(outcomes[0].error) and "made no progress for 4 s" in str(outcomes[0].error)
    assert any("in hang" in line for line in said), said


def test_run_in_which_every_worker_hangs_ends_with_an_error_that_names_the_task() -> None:
    said: list[str] = []
    config = ExecutorConfig(name="ray", workers=WorkerRange(1, 1), stall_seconds=2)
    with pytest.raises(EnvironmentProblem, match=r"0 on node .* made no progress for 2 s"):
        list(RayExecutor(config, notice=said.append).map(partial(workers.Hangs, (0,)), range(3)))
    assert any("time.sleep" in line for line in said), said


def test_long_task_that_makes_progress_is_left_alone() -> None:
    config = ExecutorConfig(name="ray", workers=WorkerRange(1, 1), stall_seconds=2)
    assert [o.value for o in RayExecutor(config).map(partial(workers.SlowWithPulse, 3.0), [4])] == [8]


def test_task_of_a_slow_worker_is_never_given_to_a_second_one(tmp_path: Path) -> None:
    outcomes = list(on_ray(2).map(partial(workers.SlowNode, tmp_path), range(12)))
    assert sorted(o.value for o in outcomes) == [2 * number for number in range(12)]
    begun = [path.name.split("-")[1] for path in tmp_path.glob("begun-*")]
    assert sorted(map(int, begun)) == list(range(12))


def test_actor_without_a_place_holds_up_no_task() -> None:
    # The cluster has room for two.
    config = ExecutorConfig(name="ray", workers=WorkerRange(1, 4))
    assert by_task(list(RayExecutor(config).map(workers.make_double, range(9)))) == [
        (number, 2 * number, None) for number in range(9)
    ]


def test_run_with_fewer_workers_than_the_least_ends_after_the_stated_time_and_says_what_there_is() -> None:
    config = ExecutorConfig(name="ray", workers=WorkerRange(4, 4), join_seconds=2)
    with pytest.raises(EnvironmentProblem, match=r"\d of at least 4 workers had a place for the last 2 s, Ray has"):
        list(RayExecutor(config).map(workers.make_double, range(9)))


def test_workers_of_two_kinds_are_refused() -> None:
    with pytest.raises(MismatchError, match="use nodes of one kind for one cache"):
        list(on_ray(2).map(workers.OfTwoKinds, range(20)))


@pytest.mark.parametrize(("num_workers", "asked"), [(1, None), (2, None), (1, 3)])
def test_workers_share_the_cores_unless_told_how_many_threads_to_take(num_workers: int, asked: int | None) -> None:
    threads = {o.value for o in on_ray(num_workers, cpus_per_worker=asked).map(workers.SaysThreads, range(2))}
    assert threads == {str(asked or max(1, (os.cpu_count() or 1) // num_workers))}
