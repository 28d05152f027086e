"""The driver's end of an actor knows what is due, in order, and whether it still makes progress."""

import os
from typing import Any

import pytest

from pipeline.executors.ray_actor import SECONDS_TO_DUMP, Actor, Item
from tests.pipeline.executors.fake_ray import NEVER, FakeRay
from tests.pipeline.executors.workers import make_double


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def actor(ray: FakeRay) -> Actor[int]:
    return Actor.begin(ray, make_double, {"num_cpus": 2})  # type: ignore[arg-type]


def test_an_actor_begins_in_the_folder_of_the_driver_with_a_group_apart_for_the_watch(
    ray: FakeRay, actor: Actor[int]
) -> None:
    assert ray.options == [
        {"max_restarts": 0, "concurrency_groups": {"watch": 1}, "num_cpus": 2, "folder": os.getcwd()}
    ]
    assert actor.refs == [actor.placing, actor.joining] and not actor.is_ready and actor.place is None


def test_what_is_due_comes_in_the_order_in_which_it_was_asked(actor: Actor[int]) -> None:
    for task in (7, 8):
        actor.give(Item(task), 0.0)
    assert actor.refs[:2] == [actor.placing, actor.joining] and list(actor.in_flight) == actor.refs[2:]
    assert [item.task for item in actor.in_flight.values()] == [7, 8]
    actor.placing = None
    assert len(actor.refs) == 3 and not actor.is_ready
    actor.joining = None
    assert len(actor.refs) == 2 and actor.is_ready


def test_what_it_does_is_its_oldest_task_or_the_loading_of_its_worker(actor: Actor[int]) -> None:
    assert actor.doing == "the loading of the worker"
    actor.give(Item(7), 0.0)
    actor.give(Item(8), 0.0)
    assert actor.doing == "7"


def test_only_the_first_of_its_tasks_counts_as_progress_when_it_is_handed_over(actor: Actor[int]) -> None:
    actor.give(Item(7), 5.0)
    assert actor.progress_at == 5.0
    actor.give(Item(8), 6.0)
    assert actor.progress_at == 5.0, "one that gets ever more work would never be found hanging"


def test_a_pulse_is_progress_only_when_it_changed(ray: FakeRay, actor: Actor[int]) -> None:
    pulses = iter([(0, 1), (0, 1), (0, 2), (1, 0)])
    ray.pulse = lambda number: next(pulses)
    seen = []
    for now in (1.0, 2.0, 3.0, 4.0):
        actor.take_pulse(ray, now)  # type: ignore[arg-type]
        seen.append(actor.progress_at)
    # The first look asks alone; the third finds what the second had.
    assert seen == [0.0, 2.0, 2.0, 4.0]
    assert actor.handle.pulse.groups == ["watch"] * 4


def test_a_pulse_that_does_not_come_is_waited_for_without_asking_again(ray: FakeRay, actor: Actor[int]) -> None:
    asked = []
    ray.pulse = lambda number: asked.append(number) or NEVER
    for now in (1.0, 2.0, 3.0):
        actor.take_pulse(ray, now)  # type: ignore[arg-type]
    assert asked == [0] and actor.progress_at == 0.0


def test_a_death_that_a_pulse_meets_is_no_progress_and_no_error(ray: FakeRay, actor: Actor[int]) -> None:
    pulses: list[Any] = [(0, 1), ray.exceptions.ActorDiedError("gone"), (0, 1), (0, 2)]
    ray.pulse = lambda number: pulses.pop(0)
    for now in (1.0, 2.0, 3.0, 4.0):
        actor.take_pulse(ray, now)  # type: ignore[arg-type]
    assert actor.progress_at == 2.0


def test_stacks_are_text_or_the_reason_why_nobody_can_say(
    ray: FakeRay, actor: Actor[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []
    get = ray.get
    monkeypatch.setattr(ray, "get", lambda ref, timeout: waited.append(timeout) or get(ref))
    assert actor.stacks(ray) == "thread main"  # type: ignore[arg-type]
    ray.stacks = lambda number: ray.exceptions.ActorDiedError("gone")
    assert actor.stacks(ray) == "its process does not answer (ActorDiedError)"  # type: ignore[arg-type]
    assert waited == [SECONDS_TO_DUMP] * 2 and actor.handle.stacks.groups == ["watch"] * 2
