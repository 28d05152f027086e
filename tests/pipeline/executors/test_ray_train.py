"""Training inside Ray is training: the same weights, the same errors, and it can be stopped and resumed."""

from dataclasses import replace

import pytest

from cache_schema.errors import EnvironmentProblem, UsageError
from pipeline.executors.ray_train import distill_in_ray
from stages.distill.config import DistillConfig
from stages.distill.run import distill
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import small_cache

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


class Listener:
    """Notes progress and sentences, and asks to stop once a step is done when it is told to."""

    def __init__(self, *, stop: bool = False) -> None:
        self.steps: list[int] = []
        self.said: list[str] = []
        self._stop = stop

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        if unit == "steps":
            self.steps.append(done)

    def should_stop(self) -> bool:
        return self._stop and bool(self.steps)


def train_in_ray(config: DistillConfig, listener: Listener) -> dict:
    (result,) = distill_in_ray(
        [config],
        address=None,
        progress=listener.progress,
        notice=listener.said.append,
        should_stop=listener.should_stop,
    )
    return result


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    """A tiny student on a tiny cache; `out` is not there yet."""
    folder = tmp_path_factory.mktemp("train")
    small_cache(folder)
    return distill_config(folder / "cache", folder / "run", steps=3, batch_size=4)


def test_training_in_ray_ends_with_the_weights_of_training_here(config: DistillConfig) -> None:
    listener = Listener()
    here = distill(replace(config, out=config.out / "here"))
    there = train_in_ray(replace(config, out=config.out / "there"), listener)
    assert there["weights_sha256"] == here["weights_sha256"]
    assert there["loss"] == here["loss"]
    assert listener.steps[-1] == 3
    assert any("3 steps of 4 images" in said for said in listener.said)


def test_stopped_training_in_ray_saves_and_ends_with_the_same_weights_when_run_again(config: DistillConfig) -> None:
    stopped = replace(config, out=config.out / "stopped", steps=160)
    whole = distill(replace(stopped, out=config.out / "whole"))
    with pytest.raises(KeyboardInterrupt, match="stopped at step"):
        train_in_ray(stopped, Listener(stop=True))
    listener = Listener()
    assert train_in_ray(stopped, listener)["weights_sha256"] == whole["weights_sha256"]
    assert any("resuming" in said for said in listener.said)


def test_error_of_training_is_the_same_error_here(config: DistillConfig) -> None:
    with pytest.raises(UsageError, match="unknown kind of student 'tim'"):
        train_in_ray(replace(config, out=config.out / "none", student="tim:resnet10t"), Listener())
    with pytest.raises(UsageError, match="use --device cuda"):
        train_in_ray(replace(config, device="cuda:1"), Listener())


def test_absent_gpu_is_an_error(config: DistillConfig) -> None:
    import ray

    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(EnvironmentProblem, match="Ray has none"):
        train_in_ray(replace(config, device="cuda"), Listener())
