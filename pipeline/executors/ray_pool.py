"""The pool of Ray actors: how many there are, what each has to do, and what becomes of it when one is lost.

An actor goes through three states. It waits for a *place* (Ray has no free resources for it yet), it *joins* (its
worker is made and admitted), and it works. Only one that joined is given tasks, so that one without a place holds up
nothing. A task belongs to one living actor at a time: a slow one keeps it, however slow, and only a dead or stalled one
loses it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from types import ModuleType
from typing import Any, Generic

from cache_schema.errors import EnvironmentProblem, LockedError, MismatchError, PipelineError, UsageError
from pipeline.executors.base import WORKER_DIED, Failure, Outcome, Result, Stopped, Task, may_kill
from pipeline.executors.config import WorkerRange
from pipeline.executors.ray_actor import Actor, Item
from pipeline.executors.ray_cluster import HeadWatch, resources
from pipeline.executors.ray_host import Place
from pipeline.executors.watchdog import Clock, stalled

# One task computes, one waits, so that an actor is never idle between two.
TASKS_IN_FLIGHT_PER_ACTOR = 2
ATTEMPTS_PER_TASK = 3
# More actors than these do not wait for a place at the same time; the next are asked for as these get one.
MOST_WITHOUT_PLACE = 64
SECONDS_TO_CLOSE = 5
# An actor for which there is room has begun by then.
SECONDS_TO_START = 15
SECONDS_BETWEEN_LOOKS = 1.0
MOST_SECONDS_BETWEEN_PULSES = 15.0


@dataclass(frozen=True)
class PoolConfig:
    """The settings of a pool.

    Attributes:
        workers: how many; the most may become fewer when memory runs out.
        actor_options: the options of `ray.remote`: resources and environment of an actor.
        join_seconds: how long the run goes on with fewer than the least workers.
        stall_seconds: how long a worker may be without progress.
        names_nodes: say in errors which node they come from.
        notice: called with what a person should know meanwhile.
    """

    workers: WorkerRange
    actor_options: dict[str, Any]
    join_seconds: float
    stall_seconds: float
    names_nodes: bool
    notice: Callable[[str], None]


class Pool(Generic[Task, Result]):
    """Actors and what each of them has to do."""

    def __init__(
        self, ray: ModuleType, make_worker: Callable[[], Callable[[Task], Result]], config: PoolConfig
    ) -> None:
        self._ray = ray
        self._make_worker = make_worker
        self._config = config
        self._workers = config.workers
        self._actors: list[Actor[Task]] = []
        self._waiting: deque[Item[Task]] = deque()
        self._again: deque[Item[Task]] = deque()
        self._began = False
        self._kind: tuple[str, Place] | None = None
        self._left_out: dict[str, str] = {}
        self._deaths_in_a_row = 0
        self._clock = Clock()
        self._enough_at = 0.0
        self._pulses_at = 0.0
        self._said_waiting = False
        self._head = HeadWatch(ray.get_runtime_context().gcs_address)

    def run(self, tasks: Iterator[Task]) -> Iterator[Outcome[Task, Result]]:
        """Yields the outcome of every task.

        Raises:
            PipelineError: an actor says that the run must stop, there are too few actors for too long, none makes
                progress, actors die again and again, or the cluster is gone.
        """
        while self._refill(tasks):
            self._grow()
            self._hand_out()
            refs = [ref for actor in self._actors for ref in actor.refs]
            # The time-out lets Python deliver signals.
            ready, _ = self._ray.wait(refs, num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
            outcomes = list(chain.from_iterable(self._receive(ref) for ref in ready))
            outcomes += self._look_after()
            self._refill(tasks)
            self._hand_out()
            yield from outcomes

    def close(self) -> None:
        """Ends all actors; a task under way is abandoned, which is safe because a part is committed whole or not."""
        if self._head.is_lost:
            # Nobody is there who could be asked to end them; the nodes do so when they notice.
            return
        idle = [actor.handle.close.remote() for actor in self._actors if actor.is_ready and not actor.in_flight]
        if idle:
            self._ray.wait(idle, num_returns=len(idle), timeout=SECONDS_TO_CLOSE)
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._actors.clear()

    def _refill(self, tasks: Iterator[Task]) -> int:
        """Reads ahead as many tasks as there may be actors; returns how many tasks are not done yet.

        One that may kill comes first: its answer says what is to be done with others of its kind.
        """
        missing = self._workers.most - len(self._waiting)
        for item in map(Item, islice(tasks, max(missing, 0))):
            if may_kill(item.task):
                self._again.appendleft(item)
            else:
                self._waiting.append(item)
        return len(self._waiting) + len(self._again) + sum(len(actor.in_flight) for actor in self._actors)

    @property
    def _num_useful(self) -> int:
        """The most actors that would have something to do."""
        busy = sum(1 for actor in self._actors if actor.in_flight)
        return min(self._workers.most, busy + len(self._waiting) + len(self._again))

    @property
    def _least(self) -> int:
        return min(self._workers.least, self._num_useful)

    @property
    def _num_placed(self) -> int:
        return sum(1 for actor in self._actors if actor.place is not None)

    def _grow(self) -> None:
        """Asks Ray for the actors that are missing. Those without a place begin as soon as a node has room for them."""
        num_more = min(self._num_useful - len(self._actors), MOST_WITHOUT_PLACE - len(self._actors) + self._num_placed)
        options = dict(self._config.actor_options)
        if self._left_out:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(self._left_out)})"}
        for _ in range(num_more):
            self._actors.append(Actor.begin(self._ray, self._make_worker, options))

    def _hand_out(self) -> None:
        """Gives every actor that joined its share of work, a first task to each before a second to any.

        A task that met a death has an actor for itself, so that the next death tells whose fault it was. Towards the
        end nobody gets a second task: it would wait for a slow actor while others have nothing to do.
        """
        self._began = self._began or self._num_placed >= self._least
        if not self._began:
            return
        for depth in range(TASKS_IN_FLIGHT_PER_ACTOR):
            for actor in self._actors:
                in_flight = list(actor.in_flight.values())
                if not actor.is_ready or len(in_flight) > depth or any(item.num_deaths for item in in_flight):
                    continue
                if self._again and not in_flight:
                    item = self._again.popleft()
                elif self._waiting and (not depth or len(self._waiting) >= len(self._actors)):
                    item = self._waiting.popleft()
                else:
                    break
                actor.give(item, self._clock.read())

    def _receive(self, ref: Any) -> list[Outcome[Task, Result]]:
        """Returns the outcomes behind a finished `ref`; when its actor died, what is left to say of all its tasks."""
        actor = next((actor for actor in self._actors if ref in actor.refs), None)
        outcomes: list[Outcome[Task, Result]] = []
        # An actor works in order, so what was handed to it before `ref` is finished too, or died with it.
        for earlier in actor.refs if actor is not None else ():
            assert actor is not None
            try:
                answer = self._ray.get(earlier)
            except self._ray.exceptions.RayError as error:
                return outcomes + self._bury(actor, error)
            actor.progress_at = self._clock.read()
            if earlier == actor.placing:
                actor.place, actor.placing = answer, None
            elif earlier == actor.joining:
                actor.joining = None
                self._admit(actor, answer)
            elif isinstance(answer, Stopped):
                raise self._named(answer.error, actor)
            else:
                self._deaths_in_a_row = 0
                # The task that we hold, not its copy that made the journey.
                outcomes.append(Outcome(actor.in_flight.pop(earlier).task, answer.value, answer.error))
            if earlier == ref:
                break
        return outcomes

    def _admit(self, actor: Actor[Task], answer: str | Stopped) -> None:
        """Takes a new actor in, or leaves its node out when its worker cannot be made there or is of another kind.

        Raises:
            PipelineError: why it is not taken in, when the run must not go on without it.
        """
        assert actor.place is not None
        if isinstance(answer, Stopped):
            return self._leave_out(actor, answer.error)
        if self._kind is None:
            self._kind = (answer, actor.place)
        kind, first = self._kind
        if answer != kind:
            said = f"computes on {answer}, node {first.host} on {kind}: use nodes of one kind for one cache"
            self._leave_out(actor, MismatchError(said if self._config.names_nodes else f"a worker {said}"))

    def _leave_out(self, actor: Actor[Task], error: PipelineError) -> None:
        assert actor.place is not None
        if not self._workers.is_elastic or isinstance(error, LockedError | UsageError):
            raise self._named(error, actor)
        place = actor.place
        if place.node_id not in self._left_out:
            self._left_out[place.node_id] = str(error)
            self._config.notice(f"node {place.host} is left out: {error}")
        if not {node["NodeID"] for node in self._ray.nodes() if node["Alive"]} - self._left_out.keys():
            raise self._named(error, actor)
        # Those without a place are asked for anew, elsewhere.
        for other in [actor, *(other for other in self._actors if other.place is None)]:
            self._dismiss(other)

    def _named(self, error: PipelineError, actor: Actor[Task]) -> PipelineError:
        """Returns `error` with the node that it comes from in front."""
        if not self._config.names_nodes or actor.place is None:
            return error
        named = type(error)(f"on node {actor.place.host}: {error}")
        for note in getattr(error, "__notes__", ()):
            named.add_note(note)
        return named

    def _dismiss(self, actor: Actor[Task]) -> None:
        self._ray.kill(actor.handle)
        self._actors.remove(actor)

    def _bury(self, actor: Actor[Task], error: Exception) -> list[Outcome[Task, Result]]:
        """Takes a dead actor's tasks back and returns those that were given up.

        Each may be the culprit: the answer to one that was done can be lost when the next one kills the process.

        Raises:
            EnvironmentProblem: no other actor would do better.
        """
        reason = " ".join(str(error).split())[:300]
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.LocalRayletDiedError):
            raise EnvironmentProblem(
                f"the Ray node of this process is gone ({reason}): start it again and run again to resume"
            )
        if isinstance(error, exceptions.RayTaskError | exceptions.RuntimeEnvSetupError) or getattr(
            error, "actor_init_failed", False
        ):
            raise EnvironmentProblem(f"a Ray worker cannot run this task ({reason}): see that it has the same packages")
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > ATTEMPTS_PER_TASK * (len(self._actors) + 1):
            raise EnvironmentProblem(
                f"{self._deaths_in_a_row} Ray workers died in a row ({reason}): look for a lack of memory, lower "
                "--workers or --batch-size, and run again to resume"
            )
        if isinstance(error, exceptions.OutOfMemoryError) and self._workers.most > 1:
            most = max(1, len(self._actors) - 1)
            self._workers = replace(self._workers, least=min(self._workers.least, most), most=most)
            self._config.notice(f"a node ran out of memory, so the run goes on with at most {most} workers")
        self._config.notice(f"the worker on {actor.place or 'a node'} died, what it had is done again ({reason[:120]})")
        self._dismiss(actor)
        outcomes: list[Outcome[Task, Result]] = []
        again: list[Item[Task]] = []
        for item in actor.in_flight.values():
            item.num_deaths += 1
            if item.num_deaths < ATTEMPTS_PER_TASK:
                again.append(item)
            else:
                # These deaths are its own: with many such tasks there is still nothing wrong with the machines.
                self._deaths_in_a_row = max(0, self._deaths_in_a_row - ATTEMPTS_PER_TASK)
                message = f"the worker died {item.num_deaths} times at this task ({reason})"
                outcomes.append(Outcome(item.task, error=Failure(WORKER_DIED, message)))
        # Before others that met a death, so that it is soon known who is a culprit.
        self._again.extendleft(reversed(again))
        return outcomes

    def _look_after(self) -> list[Outcome[Task, Result]]:
        """Sees to it that there is a head, that there are enough actors, and that none of them hangs."""
        now = self._clock.read()
        self._head.check(now)
        if self._num_placed >= self._least:
            self._enough_at = now
        elif now - self._enough_at > self._config.join_seconds:
            reasons = "".join(f"; left out: {reason}" for reason in self._left_out.values())
            raise EnvironmentProblem(
                f"{self._num_placed} of at least {self._least} workers had a place for the last "
                f"{self._config.join_seconds:g} s, Ray has {resources(self._ray)}{reasons}: add nodes or lower "
                "--workers, and run again to resume"
            )
        elif not self._said_waiting and now - self._enough_at > SECONDS_TO_START and self._config.names_nodes:
            self._said_waiting = True
            self._config.notice(
                f"{self._num_placed} of at least {self._least} workers have a place, Ray has {resources(self._ray)}: "
                f"waiting up to {self._config.join_seconds:g} s for nodes"
            )
        if now - self._pulses_at < min(MOST_SECONDS_BETWEEN_PULSES, self._config.stall_seconds / 4):
            return []
        self._pulses_at = now
        return self._look_for_stalls(now)

    def _look_for_stalls(self, now: float) -> list[Outcome[Task, Result]]:
        """Asks all busy actors for their pulse, and gives up the task of one that had none for too long.

        Raises:
            EnvironmentProblem: all of them hang.
        """
        busy = [actor for actor in self._actors if actor.place is not None and actor.refs]
        for actor in busy:
            actor.take_pulse(self._ray, now)
        hanging = [actor for actor in busy if now - actor.progress_at >= self._config.stall_seconds]
        for actor in hanging:
            self._config.notice(f"{actor.doing} on {actor.place} hangs here:\n{actor.stacks(self._ray)}")
        if hanging and len(hanging) == len(busy):
            raise stalled(f"{hanging[0].doing} on {hanging[0].place}", self._config.stall_seconds)
        return list(chain.from_iterable(self._give_up(actor) for actor in hanging))

    def _give_up(self, actor: Actor[Task]) -> list[Outcome[Task, Result]]:
        self._deaths_in_a_row += 1
        self._dismiss(actor)
        error = stalled(f"{actor.doing} on {actor.place}", self._config.stall_seconds)
        hung, *others = actor.in_flight.values() or [None]
        self._waiting.extendleft(item for item in others if item is not None)
        return [] if hung is None else [Outcome(hung.task, error=Failure("", str(error)))]
