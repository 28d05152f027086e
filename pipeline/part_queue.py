"""The parts that a run has still to do: those of its job and, where workers died, whatever tells of which rows."""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cache_schema.errors import EnvironmentProblem
from pipeline.executors.base import WORKER_DIED, Failure, Outcome
from pipeline.output import print_note

if TYPE_CHECKING:
    from stages.parts.fatal_rows import Search
    from stages.parts.job import PartsJob
    from stages.parts.pending import PartReport, PartTask

    Settled = Outcome[PartTask, PartReport]


MOST_GIVEN_UP_IN_A_ROW = 10


class PartQueue(Iterator["PartTask"]):
    """The tasks of `job`, that of a part at which an earlier run died first; more of them come with the outcomes.

    Args:
        job: whose cache is locked.
        is_here: tasks are done by this process as soon as they are asked for, so that it notes which part it does.
    """

    def __init__(self, job: "PartsJob[Any]", *, is_here: bool) -> None:
        from stages.parts.under_way import UnderWay

        self._is_here = is_here
        self._under_way = UnderWay(job.cache.layout, job.settings.fence)
        self._waiting: deque[PartTask] = deque()
        self._searches: dict[tuple[str, int], Search] = {}
        self._num_given_up = 0
        left = self._under_way.left()
        for task in job.tasks:
            if _part_of(task) == left:
                print_note(
                    f"{task}: an earlier run ended in the middle of it; it is done first, in a process of its own"
                )
                self._search(task)
            else:
                self._waiting.append(task)

    def __next__(self) -> "PartTask":
        """Returns the next task.

        Raises:
            StopIteration: there is none now; outcomes may bring more.
            LockedError: the lock was lost.
        """
        # Unlike other iterators it can go on after its end, which is what executors do after an outcome.
        if not self._waiting:
            raise StopIteration
        task = self._waiting.popleft()
        if self._is_here:
            self._under_way.begin(task)
        return task

    def settled(self, outcome: "Settled") -> "Settled | None":
        """Returns what became of the part of `outcome`; None where the rows of which its workers die are searched.

        Raises:
            EnvironmentProblem: workers die of one part after the other, whatever rows are left out.
        """
        task, error = outcome.task, outcome.error
        died = error.message if error is not None and error.kind == WORKER_DIED else None
        search = self._searches.get(_part_of(task))
        if search is None and died is not None:
            print_note(f"{task}: its worker died; the rows to blame are looked for")
            self._search(task)
            return None
        if search is None:
            return self._got_over(outcome)
        why = ""
        if error is None or died is not None:
            try:
                self._waiting.appendleft(search.send(died))
                return None
            except StopIteration as end:
                why = end.value
        del self._searches[_part_of(task)]
        return self._given_up(task, why) if why else self._got_over(outcome)

    def _given_up(self, task: "PartTask", why: str) -> "Settled":
        self._num_given_up += 1
        if self._num_given_up == MOST_GIVEN_UP_IN_A_ROW:
            raise EnvironmentProblem(
                f"workers died of {self._num_given_up} parts in a row, the last was {task}: {why}; then run again to "
                "resume"
            )
        return Outcome(task, error=Failure("", why))

    def _got_over(self, outcome: "Settled") -> "Settled":
        if outcome.error is None:
            self._num_given_up = 0
        if outcome.error is None and outcome.task.fatal:
            rows = ", ".join(str(outcome.task.part.first_row + offset) for offset in sorted(outcome.task.fatal))
            print_note(f"{outcome.task}: done but for row {rows}, of which workers die")
        return outcome

    def close(self) -> None:
        """Takes back the note of the part under way: whoever gets here can say how the run ended."""
        self._under_way.end()

    def _search(self, task: "PartTask") -> None:
        from stages.parts.fatal_rows import without_fatal_rows

        search = self._searches[_part_of(task)] = without_fatal_rows(task)
        self._waiting.appendleft(next(search))


def _part_of(task: "PartTask") -> tuple[str, int]:
    return task.modality, task.part.number
