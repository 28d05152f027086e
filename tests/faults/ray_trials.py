"""Extracts on Ray that meet a fault, and what must be true of the cache afterwards."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cache_schema.cache import Cache
from cache_schema.verify import verify_cache
from pipeline.executors.base import Executor, Outcome
from pipeline.executors.serial import SerialExecutor
from stages.extract.config import ExtractConfig
from stages.extract.job import ExtractJob, open_job
from stages.parts.pending import PartTask
from tests.corpora.extracts import digests_of, extract_config
from tests.corpora.small_corpus import write_sources
from tests.corpora.stub_teacher import STUB
from tests.faults.faulty_worker import FaultyWorker, faults_for


@dataclass
class Figures:
    """What was met, over all trials. All but `faults` and `runs` must stay 0."""

    runs: int = 0
    faults: int = 0
    divergent_digests: int = 0
    double_commits: int = 0
    damaged: int = 0
    failed_parts: int = 0
    hangs: int = 0
    wrong: list[str] = field(default_factory=list)

    def judge(self, cache: Path, expected: dict[str, str], what: str) -> None:
        """Compares a finished cache with the serial one."""
        self.runs += 1
        found = digests_of(cache)
        problems = [problem.what for problem in verify_cache(cache)]
        doubled = sum(sum(record.num_rows for record in array.records()) - array.num_rows for array in arrays(cache))
        self.divergent_digests += found != expected
        self.damaged += bool(problems)
        self.double_commits += abs(doubled)
        self.wrong += [f"{what}: {problem}" for problem in problems]
        self.wrong += [f"{what}: another digest"] if found != expected else []


def arrays(cache: Path) -> Iterator[Any]:
    opened = Cache.open(cache)
    return (opened.array(modality, name) for modality in opened.modalities for name in opened.arrays(modality))


@dataclass(frozen=True)
class Corpus:
    """Sources, and the digests that the serial executor gives."""

    folder: Path
    pictures: Path
    sentences: Path
    expected: dict[str, str]

    def config(self, name: str, teacher: str = STUB) -> ExtractConfig:
        """Returns the configuration of an extract into the cache called `name`, which is removed first."""
        cache = self.folder / name
        shutil.rmtree(cache, ignore_errors=True)
        return config_of(cache, self.pictures, self.sentences, teacher)

    def kept_config(self, name: str, teacher: str) -> ExtractConfig:
        """Returns the same for a cache that is there already."""
        return config_of(self.folder / name, self.pictures, self.sentences, teacher)


def config_of(cache: Path, pictures: Path, sentences: Path, teacher: str) -> ExtractConfig:
    """Returns a configuration of parts of eight rows."""
    return extract_config(cache, pictures, sentences, teacher=teacher, part_rows=8, batch_size=4, num_threads=0)


def write_corpus(folder: Path, *, num_images: int = 80, num_texts: int = 80) -> Corpus:
    """Returns a corpus of parts of 8, two pictures of which are bad, extracted serially once."""
    pictures, sentences = write_sources(folder, num_images=num_images, num_texts=num_texts)
    for name in ("0003.png", "0042.png"):
        (pictures / name).write_bytes(b"not a picture")
    config = config_of(folder / "serial", pictures, sentences, STUB)
    for _ in extracting(config, SerialExecutor()):
        pass
    return Corpus(folder, pictures, sentences, digests_of(folder / "serial"))


def extracting(
    config: ExtractConfig,
    executor: Executor,
    *,
    make: Callable[[ExtractJob], Callable[[], Any]] = lambda job: job.make_worker,
    tasks: Callable[[Sequence[PartTask]], Sequence[PartTask]] = lambda tasks: tasks,
) -> Iterator[Outcome[PartTask, Any]]:
    """Yields the outcomes of an extract as they come, and finishes it after the last."""
    with open_job(config) as job:
        yield from executor.map(make(job), tasks(job.tasks))
        job.finish()


def strike_workers(corpus: Corpus, executor: Executor, figures: Figures, name: str, seed: int | None = None) -> None:
    """Extracts the corpus while workers die at parts of it; see `faults_for`."""
    marks = corpus.folder / f"{name}-marks"
    marks.mkdir()
    planned: dict[str, str] = {}

    def faulty(job: ExtractJob) -> Callable[[], Any]:
        planned.update(faults_for(job.tasks, seed))
        return partial(FaultyWorker, job.make_worker, planned, marks)

    outcomes = list(extracting(corpus.config(name), executor, make=faulty))
    struck = len(list(marks.glob("struck *")))
    figures.faults += struck
    failed = [f"{name}: {outcome.task} failed: {outcome.error}" for outcome in outcomes if outcome.error]
    figures.failed_parts += len(failed)
    figures.wrong += failed
    figures.judge(corpus.folder / name, corpus.expected, name)


def deliver_twice(corpus: Corpus, executor: Executor, figures: Figures, name: str) -> None:
    """Extracts the corpus while every part is given out twice in a row, so that two workers have it at once."""

    def twice(tasks: Sequence[PartTask]) -> list[PartTask]:
        return [task for task in tasks for _ in range(2)]

    outcomes = list(extracting(corpus.config(name), executor, tasks=twice))
    figures.faults += len(outcomes) // 2
    figures.failed_parts += sum(1 for outcome in outcomes if outcome.error)
    figures.judge(corpus.folder / name, corpus.expected, name)
