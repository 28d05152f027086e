"""One loop runs the parts of every job: it shows rows, counts bad ones, and names the parts that failed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache_schema.cache import Cache
from cache_schema.errors import EnvironmentProblem, LockedError, TooManyBadRows
from pipeline.executors.serial import SerialExecutor
from pipeline.parts import bottleneck, next_step, rate, run_parts
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.parts.failed import FailedPart

STUB = "python:tests.corpora.stub_teacher:make?dim=8"


@pytest.fixture
def config(tmp_path: Path) -> ExtractConfig:
    """40 sentences in five parts of 8, one of them bad, and 16 more to be planned later."""
    (tmp_path / "sentences.txt").write_text("".join(f"sentence {i}\n" if i != 7 else "\n" for i in range(40)))
    (tmp_path / "more.txt").write_text("".join(f"another {i}\n" for i in range(16)))
    return ExtractConfig(
        cache=tmp_path / "cache",
        texts=(str(tmp_path / "sentences.txt"),),
        teacher=STUB,
        part_rows=8,
        batch_size=4,
        index=False,
    )


class Shown:
    """Notes what is shown."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, int, str, str]] = []

    def __call__(self, done: int, total: int, unit: str, note: str = "") -> None:
        self.lines.append((done, total, unit, note))


def test_progress_counts_rows_of_the_whole_cache_and_moves_within_a_part(config: ExtractConfig) -> None:
    with open_job(config) as job:
        run_parts(job, SerialExecutor(), lambda *_: None)
    more = replace(config, texts=(str(config.cache.parent / "more.txt"),))
    shown = Shown()
    with open_job(more) as job:
        ran = run_parts(job, SerialExecutor(), shown)
    assert [line[:3] for line in shown.lines] == [(done, 56, "rows") for done in (40, 44, 48, 48, 52, 56, 56)]
    assert shown.lines[0][3] == "" and shown.lines[-1][3].startswith("slowest: ")
    assert (ran.num_parts, ran.num_rows, ran.failed) == (2, 16, [])
    assert set(ran.seconds) == {"read", "decode", "forward", "probe", "write"} and ran.seconds["write"] > 0


def test_workers_elsewhere_are_shown_part_by_part(config: ExtractConfig) -> None:
    shown = Shown()
    with open_job(config) as job:
        run_parts(job, SerialExecutor(), shown, elsewhere=True)
    assert [done for done, *_ in shown.lines] == [0, 8, 16, 24, 32, 40]


def test_a_part_that_fails_is_named_and_the_others_are_committed(config: ExtractConfig) -> None:
    failing = replace(config, teacher=f"{STUB}&raise_text=sentence 20")
    with open_job(failing) as job:
        ran = run_parts(job, SerialExecutor(), lambda *_: None)
    assert ran.failed == [FailedPart("text", 2, "RuntimeError: the stub teacher was asked to fail", 3)]
    assert (ran.num_parts, ran.num_rows) == (5, 32)
    assert Cache.open(config.cache).array("text").committed == {0, 1, 3, 4}


def test_more_bad_rows_than_allowed_stop_the_loop_after_the_part_that_has_them(config: ExtractConfig) -> None:
    with open_job(replace(config, max_bad_fraction=0.01)) as job, pytest.raises(TooManyBadRows, match="1 of 40 texts"):
        run_parts(job, SerialExecutor(), lambda *_: None)
    assert Cache.open(config.cache).array("text").committed == {0}


def test_the_slowest_stage_and_the_rate_are_said_in_few_words() -> None:
    assert bottleneck({"read": 1.0, "forward": 3.0}) == "slowest: forward (75 %)"
    assert bottleneck({}) == bottleneck({"read": 0.0}) == ""
    assert rate(4096, 2.0) == "4,096 rows in 2.0 s (2048.0 rows/s)"


def test_the_next_step_adds_the_modality_that_is_missing_and_then_mines() -> None:
    add = {"image": "extract --images", "text": "extract --texts"}
    image, text = {"modality": "image"}, {"modality": "text"}
    assert next_step(Path("a cache"), [image], add) == "pipeline extract --texts URI --cache 'a cache'"
    assert next_step(Path("c"), [text, text], add) == "pipeline extract --images URI --cache c"
    assert next_step(Path("c"), [image, text], add).startswith("pipeline mine --cache c --from image --to text")


class FindsNoLock:
    """An executor whose workers do not find the lock of the run."""

    def map(self, make_worker: object, tasks: object) -> Iterator[Any]:
        raise LockedError("the lock was lost: over there")
        yield


def test_a_lock_that_another_run_took_before_the_first_part_was_lost_and_nothing_is_written(
    config: ExtractConfig,
) -> None:
    with open_job(config) as job:
        job.cache.layout.lock_json.unlink()
        before = sorted(config.cache.rglob("*"))
        with pytest.raises(LockedError, match=r"^the lock was lost: "):
            run_parts(job, SerialExecutor(), lambda *_: None)
        assert sorted(config.cache.rglob("*")) == before


def test_a_worker_that_finds_no_lock_while_the_run_holds_it_sees_a_copy_of_the_cache(config: ExtractConfig) -> None:
    with open_job(config) as job:
        with pytest.raises(
            EnvironmentProblem, match=r"over there; but this process holds the lock, .*: mount the same"
        ):
            run_parts(job, FindsNoLock(), lambda *_: None, elsewhere=True)
        job.cache.layout.lock_json.unlink()
        with pytest.raises(LockedError, match="no longer held by this process"):
            run_parts(job, FindsNoLock(), lambda *_: None, elsewhere=True)
