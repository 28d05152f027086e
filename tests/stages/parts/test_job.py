"""A job over parts counts bad rows from the start, and finishes with the arrays as they are on disk then."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import TooManyBadRows
from cache_schema.summary import summary_of_arrays
from stages.parts.job import NamedSources, PartsJob
from stages.parts.pending import PartReport, PartTask, pending_tasks
from stages.parts.worker import PartsWorker
from tests.corpora.tiny_cache import add_array, make_cache, unit_features


@dataclass(frozen=True)
class Settings:
    """What the worker of these tests needs."""

    num_bad: int


class Counting(PartsWorker):
    """Commits nothing and says that every part has so many bad rows."""

    def __init__(self, settings: Settings, *, progress: Any = None) -> None:
        super().__init__(progress=progress)
        self.settings = settings
        self.is_closed = False

    def __call__(self, task: PartTask) -> PartReport:
        self._show(task.part.num_rows)
        return PartReport(task.modality, task.part.number, task.part.num_rows, self.settings.num_bad)

    def close(self) -> None:
        self.is_closed = True


def job_over(cache: Cache, *, max_bad_fraction: float = 1.0, **fields: Any) -> PartsJob[Settings]:
    array = cache.array("image")
    return PartsJob(
        cache=cache,
        settings=Settings(num_bad=2),
        worker=Counting,
        tasks=list(pending_tasks([array])),
        arrays={"image": [array]},
        sources={"image": NamedSources(frozenset({0}), ())},
        max_bad_fraction=max_bad_fraction,
        build_indexes=fields.get("build_indexes"),
    )


def half_made(path: Path) -> Cache:
    """Returns a cache of 40 images in parts of 16, of which part 0 is committed, with 3 bad rows."""
    cache = make_cache(path, num_images=0, num_texts=0)
    add_array(cache, "image", unit_features(40, 8), bad=(1, 2, 5), parts=(0,))
    return Cache.open(path)


def test_bad_rows_count_against_all_planned_rows_from_the_start(tmp_path: Path) -> None:
    cache = half_made(tmp_path / "cache")
    job = job_over(cache, max_bad_fraction=5 / 40)
    assert (job.num_planned, job.num_pending_rows) == ({"image": 40}, 24)
    job.count_bad("image", 2)
    with pytest.raises(TooManyBadRows, match=r"6 of 40 images are bad, more than --max-bad-fraction 0\.125: see"):
        job.count_bad("image", 1)
    with pytest.raises(TooManyBadRows, match=r"3 of 40 images"):
        job_over(cache, max_bad_fraction=2 / 40)


def test_finishing_opens_the_arrays_anew_and_hands_them_to_whoever_builds_indexes(tmp_path: Path) -> None:
    built: list[tuple[list[CachedArray], object]] = []

    def build(arrays: Any, /, *, progress: Any = None) -> None:
        built.append((list(arrays), progress))

    def progress(*_: object) -> None: ...

    cache = half_made(tmp_path / "cache")
    job = job_over(cache, build_indexes=build)
    add_array(cache, "image", unit_features(40, 8), bad=(1, 2, 5), parts=(1,))
    arrays = job.finish(progress=progress)
    assert built == [(arrays, progress)]
    assert job.cache is arrays[0].cache is not cache
    (summary,) = summary_of_arrays(arrays).values()
    assert (summary["rows"], summary["ok"], summary["bad"], summary["pending"]) == (32, 29, 3, 8)
    assert len(job_over(cache).finish()) == 1


def test_workers_are_made_from_what_travels_and_close_at_their_end(tmp_path: Path) -> None:
    job = job_over(half_made(tmp_path / "cache"))
    shown: list[int] = []
    make_worker = pickle.loads(pickle.dumps(job.make_worker))  # noqa: S301 - our own bytes, as Ray sends them
    with make_worker(progress=shown.append) as worker:
        reports = [worker(task) for task in job.tasks]
        assert worker.pulse == 2 and not worker.is_closed
    assert worker.is_closed and shown == [16, 8]
    assert [(report.part, report.num_bad) for report in reports] == [(1, 2), (2, 2)]
