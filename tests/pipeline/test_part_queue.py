"""The queue hands out the parts of a job, and after a death whatever tells which rows are to blame."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache_schema.errors import EnvironmentProblem, LockedError
from pipeline import part_queue
from pipeline.executors.base import WORKER_DIED, Failure, Outcome
from pipeline.part_queue import PartQueue
from stages.extract.job import ExtractJob, open_job
from stages.parts.pending import PartReport, PartTask
from tests.corpora.extracts import extract_config


@pytest.fixture
def job(tmp_path: Path) -> Iterator[ExtractJob]:
    """Five parts of eight sentences."""
    (tmp_path / "sentences.txt").write_text("".join(f"sentence {number}\n" for number in range(40)))
    with open_job(extract_config(tmp_path / "cache", None, tmp_path / "sentences.txt", part_rows=8)) as job:
        yield job


def done(task: PartTask) -> Outcome[PartTask, PartReport]:
    return Outcome(task, PartReport(task.modality, task.part.number, task.part.num_rows))


def dead(task: PartTask) -> Outcome[PartTask, PartReport]:
    return Outcome(task, error=Failure(WORKER_DIED, "SIGSEGV"))


def worked_off(queue: PartQueue, killing: dict[int, set[int]]) -> dict[int, Any]:
    """Returns number of a part -> its settled outcome, where workers die of these offsets of these parts."""
    settled = {}
    while (task := next(queue, None)) is not None:
        seen = set(range(8) if task.only is None else task.only) - task.fatal.keys()
        died = seen & killing.get(task.part.number, set())
        outcome = queue.settled(dead(task) if died else done(task))
        if outcome is not None:
            assert task.part.number not in settled, "a part is settled once"
            settled[task.part.number] = outcome
    return settled


def test_without_deaths_every_part_is_done_once_as_it_is(job: ExtractJob) -> None:
    queue = PartQueue(job, is_here=False)
    handed = []
    while (task := next(queue, None)) is not None:
        handed.append(task)
        assert queue.settled(done(task)) == done(task)
    assert handed == list(job.tasks)


def test_parts_of_which_workers_die_are_settled_once_without_the_rows_to_blame(
    job: ExtractJob, capsys: pytest.CaptureFixture[str]
) -> None:
    settled = worked_off(PartQueue(job, is_here=False), {1: {0, 5}, 4: {7}})
    assert {number: dict(outcome.task.fatal) for number, outcome in settled.items() if outcome.task.fatal} == {
        1: {0: "SIGSEGV", 5: "SIGSEGV"},
        4: {7: "SIGSEGV"},
    }
    assert sorted(settled) == [0, 1, 2, 3, 4] and all(outcome.error is None for outcome in settled.values())
    assert "text part 1: done but for row 8, 13, of which workers die" in capsys.readouterr().err


def test_a_part_whose_search_meets_an_error_fails_with_it(job: ExtractJob) -> None:
    queue = PartQueue(job, is_here=False)
    task = next(queue)
    assert queue.settled(dead(task)) is None
    failed = Outcome[PartTask, PartReport](next(queue), error=Failure("KeyError", "four"))
    assert queue.settled(failed) == failed
    assert next(queue).part.number == 1


def test_the_part_at_which_an_earlier_run_died_comes_first_and_may_kill(job: ExtractJob) -> None:
    earlier = PartQueue(job, is_here=True)
    for _ in range(3):
        next(earlier)
    tasks = list(PartQueue(job, is_here=True))
    assert [(task.part.number, task.may_kill) for task in tasks] == [
        *((2, True), (0, False), (1, False), (3, False), (4, False))
    ]


def test_workers_elsewhere_leave_no_note_and_closing_takes_it_back(job: ExtractJob) -> None:
    note = job.cache.layout.under_way_json
    queue = PartQueue(job, is_here=False)
    next(queue)
    assert not note.exists()
    queue = PartQueue(job, is_here=True)
    next(queue)
    assert note.exists()
    queue.close()
    assert not note.exists()


def test_a_lock_that_was_lost_is_noticed_before_the_next_part(job: ExtractJob) -> None:
    queue = PartQueue(job, is_here=True)
    next(queue)
    job.cache.layout.lock_json.unlink()
    with pytest.raises(LockedError, match="the lock was lost"):
        next(queue)


def test_part_after_part_that_kills_ends_the_run(job: ExtractJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_queue, "MOST_GIVEN_UP_IN_A_ROW", 3)
    queue = PartQueue(job, is_here=False)
    with pytest.raises(EnvironmentProblem, match="workers died of 3 parts in a row, the last was text part 2: "):
        while (task := next(queue, None)) is not None:
            queue.settled(dead(task))


def test_parts_that_kill_with_a_good_one_between_them_end_no_run(
    job: ExtractJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_queue, "MOST_GIVEN_UP_IN_A_ROW", 2)
    queue = PartQueue(job, is_here=False)
    failed = []
    while (task := next(queue, None)) is not None:
        outcome = queue.settled(dead(task) if task.part.number % 2 == 0 else done(task))
        failed += [task.part.number] if outcome is not None and outcome.error is not None else []
    assert failed == [0, 2, 4]
