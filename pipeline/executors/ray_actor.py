"""The driver's end of one Ray actor: what it was given, how far it is, and whether it still makes progress."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Generic

from pipeline.executors.base import Task
from pipeline.executors.ray_host import WATCH, Host, Place

SECONDS_TO_DUMP = 10


@dataclass
class Item(Generic[Task]):
    """A task, and how many workers died at it."""

    task: Task
    num_deaths: int = 0


@dataclass
class Actor(Generic[Task]):
    """One actor of a pool.

    Attributes:
        handle: Ray's.
        placing: will be its place, as soon as Ray has one; None once it has.
        joining: will be the kind of its worker, or why there is none; None once it joined.
        place: where it runs.
        in_flight: what it was given, by Ray's reference to the answer; oldest first, for an actor works in order.
        progress_at: when it last made progress, on the pool's clock.
    """

    handle: Any
    placing: Any
    joining: Any
    place: Place | None = None
    in_flight: dict[Any, Item[Task]] = field(default_factory=dict)
    progress_at: float = 0.0
    _asked: Any = None
    _last_pulse: Any = None

    @classmethod
    def begin(cls, ray: ModuleType, make_worker: Callable[[], Any], options: dict[str, Any]) -> "Actor[Task]":
        """Asks Ray for an actor; it begins when a node has room for it, and makes its worker at once."""
        handle = ray.remote(max_restarts=0, concurrency_groups={WATCH: 1}, **options)(Host).remote(os.getcwd())
        return cls(handle, handle.place.remote(), handle.join.remote(make_worker))

    @property
    def is_ready(self) -> bool:
        return self.joining is None

    @property
    def refs(self) -> list[Any]:
        """Ray's references to the answers still due, in the order in which they come."""
        return [ref for ref in (self.placing, self.joining) if ref is not None] + list(self.in_flight)

    @property
    def doing(self) -> str:
        return str(next(iter(self.in_flight.values())).task) if self.in_flight else "the loading of the worker"

    def give(self, item: Item[Task], now: float) -> None:
        """Hands `item` to the actor, which does it after what it has already."""
        if not self.in_flight:
            self.progress_at = now
        self.in_flight[self.handle.attempt.remote(item.task)] = item

    def take_pulse(self, ray: ModuleType, now: float) -> None:
        """Notes progress when the answer to the last call of this shows any, and asks again; never waits."""
        if self._asked is not None:
            if not ray.wait([self._asked], timeout=0)[0]:
                return
            try:
                seen = ray.get(self._asked)
            except ray.exceptions.RayError:
                # Its death shows itself at its task.
                seen = self._last_pulse
            if seen != self._last_pulse:
                self._last_pulse, self.progress_at = seen, now
        self._asked = self.handle.pulse.options(concurrency_group=WATCH).remote()

    def stacks(self, ray: ModuleType) -> str:
        """Returns where the threads of its process are, or why nobody can say."""
        try:
            return str(ray.get(self.handle.stacks.options(concurrency_group=WATCH).remote(), timeout=SECONDS_TO_DUMP))
        except ray.exceptions.RayError as error:
            return f"its process does not answer ({type(error).__name__})"
