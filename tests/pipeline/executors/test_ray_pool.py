"""The pool gives every task to one living actor at a time, and says in plain words when that cannot go on."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from cache_schema.errors import EnvironmentProblem, LockedError, MismatchError, PipelineError, UsageError
from pipeline.executors import ray_pool
from pipeline.executors.base import Failure, Outcome
from pipeline.executors.config import WorkerRange
from pipeline.executors.ray_host import Place, Stopped
from pipeline.executors.ray_pool import MOST_WITHOUT_PLACE, Pool, PoolConfig
from tests.pipeline.executors.fake_ray import NEVER, FakeRay
from tests.pipeline.executors.workers import make_double


class Ticking:
    """A clock on which a hundredth of a second passes with every look."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def read(self) -> float:
        self._seconds += 0.01
        return self._seconds


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """A Ray whose workers double numbers, and a clock that only ticks."""
    monkeypatch.setattr(ray_pool, "Clock", Ticking)
    ray = FakeRay()
    ray.attempt = lambda number, task: Outcome(task, 2 * task)
    return ray


Said = list[str]


def pool_of(ray: FakeRay, least: int, most: int, *, said: Said | None = None, **changes: Any) -> Pool[int, int]:
    notice = said.append if said is not None else lambda words: None
    usual: dict[str, Any] = {"actor_options": {}, "join_seconds": 300.0, "stall_seconds": 1800.0, "names_nodes": False}
    config = PoolConfig(WorkerRange(least, most), notice=notice, **{**usual, **changes})
    return Pool(ray, make_double, config)  # type: ignore[arg-type]


def values_of(pool: Pool[int, int], tasks: Iterable[int]) -> dict[int, int | Failure | None]:
    found = [(outcome.task, outcome.error or outcome.value) for outcome in pool.run(iter(tasks))]
    assert len(dict(found)) == len(found), "a task has one outcome"
    return dict(found)


def test_every_task_has_one_outcome_and_no_actor_is_asked_for_that_would_have_nothing_to_do(ray: FakeRay) -> None:
    assert values_of(pool_of(ray, 8, 8), range(3)) == {0: 0, 1: 2, 2: 4}
    assert len(ray.handles) == 3
    assert values_of(pool_of(ray, 2, 2), range(9)) == {number: 2 * number for number in range(9)}
    assert len(ray.handles) == 3 + 2


def test_without_tasks_no_actor_is_asked_for(ray: FakeRay) -> None:
    assert values_of(pool_of(ray, 2, 2), []) == {} and ray.handles == []


def test_tasks_are_read_ahead_no_further_than_actors_can_take_them(ray: FakeRay) -> None:
    numbers = itertools.count()
    outcomes = pool_of(ray, 2, 2).run(numbers)
    for _ in range(10):
        next(outcomes)
    # Two each in flight, and as many waiting as there are actors.
    assert next(numbers) <= 10 + 2 * 2 + 2


def test_an_actor_has_two_tasks_at_once_but_towards_the_end_only_one(ray: FakeRay) -> None:
    ray.attempt = lambda number, task: NEVER
    pool = pool_of(ray, 2, 2, stall_seconds=1e9)
    looks = iter(range(50))

    def wait(refs: list[Any], **rest: Any) -> tuple[list[Any], list[Any]]:
        if next(looks, None) is None:
            raise KeyboardInterrupt
        return FakeRay.wait(ray, refs, **rest)

    ray.wait = wait  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(pool.run(iter(range(4))))
    # The fourth stays behind: whoever is done first takes it.
    assert [handle.given for handle in ray.handles] == [[0, 1], [2]]


def test_no_more_actors_than_allowed_wait_for_a_place(ray: FakeRay) -> None:
    ray.place = lambda number: NEVER
    with pytest.raises(EnvironmentProblem):
        list(pool_of(ray, 1, 500, join_seconds=0.0).run(iter(range(1000))))
    assert len(ray.handles) == MOST_WITHOUT_PLACE == 64


def test_actors_have_the_options_of_the_pool_and_are_never_restarted_by_ray(ray: FakeRay) -> None:
    values_of(pool_of(ray, 1, 1, actor_options={"num_cpus": 3}), [1])
    (options,) = ray.options
    assert (options["num_cpus"], options["max_restarts"]) == (3, 0) and "label_selector" not in options


def test_the_task_of_an_outcome_is_the_one_that_was_handed_in_and_not_its_copy(ray: FakeRay) -> None:
    ray.attempt = lambda number, task: Outcome(list(task), len(task))
    tasks = [["a"], ["b", "c"]]
    outcomes = list(pool_of(ray, 1, 1).run(iter(tasks)))  # type: ignore[arg-type]
    assert [outcome.value for outcome in outcomes] == [1, 2]
    assert all(outcome.task is task for outcome, task in zip(outcomes, tasks, strict=True))


def dying(ray: FakeRay, deaths: dict[int, int], kind: str = "ActorDiedError") -> list[tuple[int, int]]:
    """Lets a task kill so many of its workers; returns the list of (actor, task) that were handed out."""
    left, given = dict(deaths), []

    def attempt(number: int, task: int) -> Any:
        given.append((number, task))
        if not left.get(task):
            return Outcome(task, 2 * task)
        left[task] -= 1
        return getattr(ray.exceptions, kind)(f"killed\n  by {task}")

    ray.attempt = attempt
    return given


def test_what_a_dead_actor_had_is_done_again_by_a_fresh_one_and_is_said(ray: FakeRay) -> None:
    said: Said = []
    dying(ray, {3: 2})
    assert values_of(pool_of(ray, 1, 1, said=said), range(6)) == {number: 2 * number for number in range(6)}
    assert len(ray.handles) == 3 and ray.killed == ray.handles[:2]
    assert said[0] == "the worker on node host0 (process 100) died, what it had is done again (killed by 3)"


def test_a_task_at_which_three_workers_died_fails_alone(ray: FakeRay) -> None:
    dying(ray, {3: 99})
    found = values_of(pool_of(ray, 1, 1), range(6))
    assert found.pop(3) == Failure("WorkerDied", "the worker died 3 times at this task (killed by 3)")
    assert found == {number: 2 * number for number in (0, 1, 2, 4, 5)}


def test_a_task_that_met_a_death_has_an_actor_for_itself(ray: FakeRay) -> None:
    given = dying(ray, {1: 2})
    values_of(pool_of(ray, 1, 1), range(8))
    second = [task for actor, task in given if actor == 1]
    assert second[0] == 1 or second.index(1) == second.index(0) + 1, second
    assert [task for actor, task in given if actor == 1][-1] == 1, "nothing was handed out beside or after it"


def test_actors_that_die_one_after_the_other_end_the_run(ray: FakeRay) -> None:
    ray.place = lambda number: ray.exceptions.ActorDiedError("no memory")
    with pytest.raises(EnvironmentProblem, match=r"7 Ray workers died in a row \(no memory\): look for a lack of mem"):
        list(pool_of(ray, 1, 1).run(iter(range(3))))
    assert len(ray.handles) == 7


def test_after_a_lack_of_memory_the_run_goes_on_with_fewer_workers(ray: FakeRay) -> None:
    said: Said = []
    dying(ray, {0: 1}, "OutOfMemoryError")
    assert len(values_of(pool_of(ray, 3, 3, said=said), range(30))) == 30
    assert said[0] == "a node ran out of memory, so the run goes on with at most 2 workers"
    assert len(ray.handles) == 3, "the one that was lost is not replaced"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("LocalRayletDiedError", "the Ray node of this process is gone (gone): start it again"),
        ("RayTaskError", "a Ray worker cannot run this task (gone): see that it has the same packages"),
        ("RuntimeEnvSetupError", "a Ray worker cannot run this task (gone): see that it has the same packages"),
    ],
)
def test_a_loss_that_another_actor_would_not_mend_ends_the_run(ray: FakeRay, kind: str, words: str) -> None:
    ray.join = lambda number: getattr(ray.exceptions, kind)("gone")
    with pytest.raises(EnvironmentProblem) as error:
        list(pool_of(ray, 1, 2).run(iter(range(3))))
    assert str(error.value).startswith(words) and len(ray.handles) == 2


def test_an_actor_that_cannot_be_made_by_ray_ends_the_run(ray: FakeRay) -> None:
    error = ray.exceptions.ActorDiedError("no module")
    error.actor_init_failed = True
    ray.place = lambda number: error
    with pytest.raises(EnvironmentProblem, match=r"cannot run this task \(no module\)"):
        list(pool_of(ray, 1, 1).run(iter(range(3))))


@pytest.mark.parametrize("names_nodes", [False, True])
def test_an_error_that_stops_the_run_keeps_class_and_notes_and_names_its_node(ray: FakeRay, names_nodes: bool) -> None:
    error = LockedError("somebody else took over")
    error.add_note("Traceback there")
    ray.attempt = lambda number, task: Stopped(error) if task == 2 else Outcome(task, 0)
    with pytest.raises(LockedError) as stopped:
        list(pool_of(ray, 1, 1, names_nodes=names_nodes).run(iter(range(5))))
    assert str(stopped.value) == ("on node host0: " if names_nodes else "") + "somebody else took over"
    assert stopped.value.__notes__ == ["Traceback there"]


def on_node_0(ray: FakeRay, answer: Any) -> None:
    """Puts every second actor on node 0, where joining is answered with `answer`; no actor is there after it."""
    ray.num_nodes = 2

    def is_there(number: int) -> bool:
        avoids = ray.options[number].get("label_selector") == {"ray.io/node-id": "!in(n0)"} if ray.options else False
        return number % 2 == 0 and not avoids

    ray.place = lambda number: Place("n0", "bad", 1) if is_there(number) else Place("n1", "good", 2)
    ray.join = lambda number: answer if is_there(number) else "cuda A"


def test_a_node_on_which_no_worker_can_be_made_is_left_out_of_an_elastic_run(ray: FakeRay) -> None:
    said: Said = []
    on_node_0(ray, Stopped(MismatchError("the probes do not agree")))
    assert len(values_of(pool_of(ray, 1, 3, said=said), range(20))) == 20
    assert said == ["node bad is left out: the probes do not agree"]
    assert ray.options[-1]["label_selector"] == {"ray.io/node-id": "!in(n0)"}
    assert not any(handle.given for handle in ray.handles[:1])


@pytest.mark.parametrize(
    ("least", "most", "error"),
    [(2, 2, MismatchError("no")), (1, 2, LockedError("no")), (1, 2, UsageError("no"))],
    ids=["fixed number", "lock", "request"],
)
def test_a_fixed_number_of_workers_and_what_no_node_can_mend_leave_none_out(
    ray: FakeRay, least: int, most: int, error: PipelineError
) -> None:
    on_node_0(ray, Stopped(error))
    with pytest.raises(type(error), match="on node bad: no"):
        list(pool_of(ray, least, most, names_nodes=True).run(iter(range(9))))


def test_a_run_whose_every_node_is_left_out_ends_with_the_last_reason(ray: FakeRay) -> None:
    ray.num_nodes = 2

    def node_of(number: int) -> int:
        return int("label_selector" in ray.options[number])

    ray.place = lambda number: Place(f"n{node_of(number)}", f"host{node_of(number)}", number)
    ray.join = lambda number: Stopped(MismatchError(f"reason {node_of(number)}"))
    said: Said = []
    with pytest.raises(MismatchError, match="reason 1"):
        list(pool_of(ray, 1, 2, said=said).run(iter(range(9))))
    assert said == ["node host0 is left out: reason 0", "node host1 is left out: reason 1"]


@pytest.mark.parametrize(("names_nodes", "who"), [(True, "on node host1: computes"), (False, "a worker computes")])
def test_workers_of_two_kinds_are_refused_with_both(ray: FakeRay, names_nodes: bool, who: str) -> None:
    ray.join = lambda number: f"cuda {number}"
    with pytest.raises(MismatchError) as error:
        list(pool_of(ray, 2, 2, names_nodes=names_nodes).run(iter(range(9))))
    assert str(error.value) == f"{who} on cuda 1, node host0 on cuda 0: use nodes of one kind for one cache"


def test_too_few_places_for_too_long_end_the_run_with_what_there_is(ray: FakeRay) -> None:
    ray.place = lambda number: NEVER if number else Place("n0", "host0", 1)
    ray.num_nodes = 1
    with pytest.raises(EnvironmentProblem) as error:
        list(pool_of(ray, 2, 2, join_seconds=0.0).run(iter(range(9))))
    assert str(error.value) == (
        "1 of at least 2 workers had a place for the last 0 s, Ray has 0 GPUs and 4 CPUs on 1 node: add nodes or lower "
        "--workers, and run again to resume"
    )


def hanging_at(tasks: tuple[int, ...]) -> Callable[..., Any]:
    return lambda number, task: NEVER if task in tasks else Outcome(task, 2 * task)


def test_a_run_in_which_every_busy_actor_hangs_ends_and_shows_where(ray: FakeRay) -> None:
    said: Said = []
    ray.attempt = hanging_at((0,))
    with pytest.raises(EnvironmentProblem, match=r"^0 on node host0 \(process 100\) made no progress for 0\.5 s"):
        list(pool_of(ray, 1, 1, said=said, stall_seconds=0.5).run(iter(range(2))))
    assert said == ["0 on node host0 (process 100) hangs here:\nthread main"]


def test_at_the_end_idle_actors_are_asked_to_close_and_all_are_killed(ray: FakeRay) -> None:
    pool = pool_of(ray, 3, 3)
    values_of(pool, range(6))
    pool.close()
    assert [handle.num_closed for handle in ray.handles] == [1, 1, 1] and ray.killed == ray.handles
    pool.close()
    assert len(ray.killed) == 3, "there is nobody left"


def test_an_actor_in_the_middle_of_a_task_is_killed_without_being_asked(ray: FakeRay) -> None:
    ray.attempt = hanging_at((1, 2, 3))
    pool = pool_of(ray, 1, 1)
    next(pool.run(iter(range(4))))
    pool.close()
    assert ray.handles[0].num_closed == 0 and ray.killed == ray.handles
