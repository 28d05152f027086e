"""Workers that die at any point of a part, and parts that are delivered twice, change nothing but time."""

from dataclasses import replace

import pytest

from pipeline.executors.config import ExecutorConfig, WorkerRange
from pipeline.executors.ray_executor import RayExecutor
from tests.faults.ray_trials import Corpus, Figures, deliver_twice, strike_workers, write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

TWO = ExecutorConfig(name="ray", workers=WorkerRange(2, 2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_worker_that_dies_at_every_point_of_a_part_gives_the_digest_of_the_serial_executor(corpus: Corpus) -> None:
    figures = Figures()
    strike_workers(corpus, RayExecutor(TWO), figures, "struck")
    assert figures == Figures(runs=1, faults=10)


def test_parts_given_to_two_workers_at_once_are_committed_once(corpus: Corpus) -> None:
    figures = Figures()
    deliver_twice(corpus, RayExecutor(replace(TWO, cpus_per_worker=1)), figures, "twice")
    assert figures == Figures(runs=1, faults=20)
