"""Finds the rows of a part of which workers die in foreign code, so that the part is committed without them.

Nobody is called here: what is to be done next is yielded as a task, for a worker that may die, and how that went is
sent back. A row is blamed only when it kills alone, twice, and a blank in its place does not: so a machine that is out
of memory, or a process that somebody killed, turns no good row into a bad one.
"""

from collections.abc import Generator
from dataclasses import replace

from stages.parts.pending import PartTask

WORKER_DIED = "worker-died"
"""The status of a row that has no feature because workers die of it."""

MOST_FATAL_ROWS = 16
MOST_UNEXPLAINED = 2

Search = Generator[PartTask, str | None, str]
"""Yields tasks, is sent how the worker died of each or None, returns why the part fails, "" where it is committed."""


def without_fatal_rows(task: PartTask) -> Search:
    """Has the part of `task`, at which a worker may have died, committed without the rows that are to blame.

    Most often none is: then the part is done once. Every row to blame costs some twenty workers for 16,384 rows.

    Returns:
        "" when the last task that was yielded committed the part, else why it fails: a worker dies whatever rows are
        left out, or no row kills it alone, or more than `MOST_FATAL_ROWS` do.
    """
    fatal: dict[int, str] = {}
    num_unexplained = 0
    while True:
        whole = replace(task, may_kill=True, fatal=dict(fatal))
        died = yield whole
        if died is None:
            return ""
        if len(fatal) == MOST_FATAL_ROWS:
            return f"{_rows_of(whole)} and others kill their worker ({died}): see what they have in common, and mend it"
        if blank := (yield _blank(whole, 0)):
            return (
                f"the worker dies of it whatever rows are left out ({blank}): see the messages above, and mend the "
                "teacher or give the worker more memory"
            )
        found = yield from _narrowed(whole)
        if (yield _blank(whole, found)):
            return (
                f"the worker dies at row {task.part.first_row + found} also where the teacher does not see it ({died})"
            )
        how = yield from _alone(whole, found)
        if how is not None and found not in fatal:
            fatal[found] = how
            continue
        num_unexplained += 1
        if num_unexplained == MOST_UNEXPLAINED:
            return (
                f"the worker died of it {num_unexplained} times ({died}), but of no row alone: look for a lack of "
                "memory, or lower --batch-size"
            )


def _narrowed(whole: PartTask) -> Generator[PartTask, str | None, int]:
    """Returns the one row left when the half that kills is halved on and on; a worker died of it, if it killed once."""
    suspects = range(whole.part.num_rows)
    while len(suspects) > 1:
        first, second = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
        suspects = second if (yield replace(whole, only=first)) is None else first
    return suspects[0]


def _alone(whole: PartTask, offset: int) -> Generator[PartTask, str | None, str | None]:
    """Returns how the worker died of the row at `offset` alone, both times; None when it survived it once."""
    how = None
    for _ in range(2):
        how = yield replace(whole, only=range(offset, offset + 1))
        if how is None:
            return None
    return how


def _blank(whole: PartTask, offset: int) -> PartTask:
    """Returns the task of a batch that has the memory and the shape of any other, and no row in it."""
    return replace(whole, only=range(offset, offset + 1), fatal={offset: ""})


def _rows_of(whole: PartTask) -> str:
    return f"rows {', '.join(str(whole.part.first_row + offset) for offset in sorted(whole.fatal))}"
