"""A Ray that runs nothing: its actors answer what a test says, at once or never."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pipeline.executors.ray_host import Place

NEVER = object()
"""The answer that does not come."""


class RayError(Exception):
    """Root of what a lost actor is answered with."""


ERRORS = ("LocalRayletDiedError", "RayTaskError", "RuntimeEnvSetupError", "OutOfMemoryError", "ActorDiedError")


class Ref:
    """Ray's reference to an answer, which may be an error; the earlier one asked, the earlier it comes."""

    _numbers = itertools.count()

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.number = next(self._numbers)


class Method:
    """A method of an actor, with `remote` and `options` as Ray gives it."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer
        self.groups: list[str] = []

    def options(self, *, concurrency_group: str) -> "Method":
        self.groups.append(concurrency_group)
        return self

    def remote(self, *args: Any) -> Ref:
        return Ref(self._answer(*args))


class Handle:
    """An actor, which works in order: behind an answer that never comes, or with which it dies, there is no other."""

    def __init__(self, ray: "FakeRay", number: int) -> None:
        self._ray = ray
        self._number = number
        self._end: Any = None
        self.given: list[Any] = []
        self.num_closed = 0
        self.place = Method(lambda: self._answered(ray.place(number)))
        self.join = Method(lambda make_worker: self._answered(ray.join(number)))
        self.attempt = Method(self._attempt)
        self.pulse = Method(lambda: ray.pulse(number))
        self.stacks = Method(lambda: ray.stacks(number))
        self.close = Method(self._close)

    def _attempt(self, task: Any) -> Any:
        self.given.append(task)
        return self._answered(self._ray.attempt(number=self._number, task=task))

    def _answered(self, answer: Any) -> Any:
        if self._end is None and (answer is NEVER or isinstance(answer, RayError)):
            self._end = answer
        return answer if self._end is None else self._end

    def _close(self) -> None:
        self.num_closed += 1


class FakeRay:
    """Stands for the module `ray`. A test replaces `place`, `join`, `attempt`, `pulse` and `stacks` as it likes."""

    def __init__(self) -> None:
        kinds = {name: type(name, (RayError,), {}) for name in ERRORS}
        self.exceptions: Any = SimpleNamespace(RayError=RayError, **kinds)
        self.handles: list[Handle] = []
        self.options: list[dict[str, Any]] = []
        self.killed: list[Handle] = []
        self.num_nodes = 9
        self.place: Callable[[int], Any] = lambda number: Place(f"n{number}", f"host{number}", 100 + number)
        self.join: Callable[[int], Any] = lambda number: "cpu"
        self.attempt: Callable[..., Any] = lambda number, task: NEVER
        self.pulse: Callable[[int], Any] = lambda number: (0, 0)
        self.stacks: Callable[[int], Any] = lambda number: "thread main"

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address="127.0.0.1:1", get_node_id=lambda: "n0")

    def remote(self, **options: Any) -> Callable[[type], SimpleNamespace]:
        def begin(folder: str) -> Handle:
            self.options.append({**options, "folder": folder})
            self.handles.append(Handle(self, len(self.handles)))
            return self.handles[-1]

        return lambda host: SimpleNamespace(remote=begin)

    def wait(self, refs: list[Ref], *, timeout: float, num_returns: int = 1) -> tuple[list[Ref], list[Ref]]:
        there = [ref for ref in refs if ref.answer is not NEVER]
        ready = sorted(there, key=lambda ref: ref.number)[:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref, *, timeout: float | None = None) -> Any:
        assert ref.answer is not NEVER, "nobody waits for what does not come"
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ref.answer

    def kill(self, handle: Handle) -> None:
        self.killed.append(handle)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": f"n{number}", "Alive": True} for number in range(self.num_nodes)]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}
