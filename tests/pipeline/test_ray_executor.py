"""The Ray executor gives what the serial one gives, also when its processes die."""

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cache_schema.errors import EnvironmentProblem, LockedError, MismatchError
from pipeline.executor import Outcome, SerialExecutor
from pipeline.executor_config import ExecutorConfig, WorkerRange
from pipeline.ray_executor import RayExecutor
from pipeline.ray_pool import ATTEMPTS_PER_TASK
from tests.pipeline import workers

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


def test_absent_gpu_is_an_error_that_says_what_there_is(ray_cluster: ModuleType) -> None:
    num_gpus = int(ray_cluster.cluster_resources().get("GPU", 0))
    with pytest.raises(EnvironmentProblem, match=f"{num_gpus + 1} GPUs are asked for, Ray has {num_gpus}"):
        list(on_ray(num_gpus + 1, device="cuda").map(workers.make_double, range(3)))


def test_private_cluster_asks_for_a_token_and_has_no_dashboard(ray_cluster: ModuleType) -> None:
    from ray._raylet import AuthenticationMode, get_authentication_mode

    assert get_authentication_mode() == AuthenticationMode.TOKEN
    assert not ray_cluster._private.worker.global_worker.node.webui_url
