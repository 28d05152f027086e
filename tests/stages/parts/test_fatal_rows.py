"""A row is blamed only when it kills alone, twice, and a blank in its place does not."""

from collections.abc import Callable

import pytest

from cache_schema.plan import Part, Span
from stages.parts.fatal_rows import MOST_FATAL_ROWS, without_fatal_rows
from stages.parts.pending import PartTask

NUM_ROWS = 1000
TASK = PartTask("text", Part(2, 5000, (Span(0, 0, NUM_ROWS, 0),)), "f" * 64, ("a",))

Died = Callable[[set[int], PartTask], str | None]


def search(died_of: Died) -> tuple[str, PartTask, list[PartTask]]:
    """Returns why the part fails, the last task that was not survived or was the end, and all tasks.

    Args:
        died_of: how a worker dies that is shown these offsets.
    """
    steps = without_fatal_rows(TASK)
    tasks = [next(steps)]
    while True:
        task = tasks[-1]
        shown = set(range(NUM_ROWS) if task.only is None else task.only) - task.fatal.keys()
        try:
            tasks.append(steps.send(died_of(shown, task)))
        except StopIteration as end:
            return end.value, tasks[-1], tasks


def killing(*rows: int) -> Died:
    return lambda shown, task: "SIGSEGV" if shown & set(rows) else None


def test_a_death_that_does_not_come_again_costs_one_more_time_and_no_row() -> None:
    why, last, tasks = search(killing())
    assert (why, len(tasks)) == ("", 1)
    assert last.may_kill and last.only is None and not last.fatal


@pytest.mark.parametrize("rows", [(0,), (999,), (500,), (3, 4), (0, 499, 500, 999), tuple(range(0, 1000, 63))])
def test_the_rows_that_kill_are_found_and_no_others(rows: tuple[int, ...]) -> None:
    why, last, tasks = search(killing(*rows))
    assert why == "" and last.only is None and dict(last.fatal) == dict.fromkeys(rows, "SIGSEGV")
    # Halving a thousand rows takes ten steps; beside them stand the whole part, two blanks and two looks at the row.
    assert len(tasks) <= 1 + 15 * len(rows)
    assert all(task.may_kill for task in tasks)


def test_a_part_that_kills_whatever_is_left_out_fails_after_one_blank() -> None:
    why, _, tasks = search(lambda shown, task: "exit code 3")
    assert why.startswith("the worker dies of it whatever rows are left out (exit code 3): ") and len(tasks) == 2


def test_a_row_at_which_reading_dies_is_not_the_teachers_and_is_not_blamed() -> None:
    # Whoever reads on to row 700 dies, also where a blank takes its place.
    why, _, _ = search(lambda shown, task: "SIGBUS" if task.only is None or task.only.stop > 700 else None)
    assert why == "the worker dies at row 5700 also where the teacher does not see it (SIGBUS)"


def test_memory_that_is_short_for_many_rows_blames_none_of_them() -> None:
    why, _, _ = search(lambda shown, task: "SIGKILL" if len(shown) > 100 else None)
    assert why.startswith("the worker died of it 2 times (SIGKILL), but of no row alone: look for a lack of memory")


def test_rows_that_kill_only_together_are_not_blamed() -> None:
    why, _, _ = search(lambda shown, task: "SIGSEGV" if {10, 900} <= shown else None)
    assert "of no row alone" in why


@pytest.mark.parametrize("survived", [0, 1])
def test_a_row_that_killed_once_and_not_again_is_not_blamed(survived: int) -> None:
    seen_alone = []

    def once(shown: set[int], task: PartTask) -> str | None:
        if shown == {7}:
            seen_alone.append(task)
            return "SIGKILL" if len(seen_alone) % 2 != survived else None
        return "SIGSEGV" if 7 in shown else None

    why, last, _ = search(once)
    assert "of no row alone" in why and not last.fatal


def test_more_rows_than_can_be_chance_fail_the_part_and_are_named() -> None:
    why, _, tasks = search(killing(*range(100, 200)))
    assert why.startswith("rows 51") and why.endswith("see what they have in common, and mend it")
    assert len(tasks[-1].fatal) == MOST_FATAL_ROWS
