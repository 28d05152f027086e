"""Averaged weights (`ema`): the average is that of plain NumPy, is exported, and survives a stop bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.distill.config import DistillConfig
from stages.distill.run import TrainingStopped, distill
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import small_cache
from tests.stages.distill.recorded_steps import recorded


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cache(tmp_path_factory.mktemp("corpus")).path


@pytest.fixture
def config(cache: Path, tmp_path: Path) -> DistillConfig:
    sizes = {"steps": 5, "batch_size": 8, "text_batch_size": 12, "learning_rate": 5e-3, "ema": 0.3}
    return distill_config(cache, tmp_path / "run", student="timm:test_efficientnet?image_size=32", **sizes)


def exported(config: DistillConfig) -> dict[str, torch.Tensor]:
    return load_file(config.out / "model" / "image_tower.safetensors")


def test_the_exported_student_has_the_average_of_the_weights_after_every_step(config: DistillConfig) -> None:
    with recorded() as steps:
        distill(config)
    from stages.students import build_student

    start = build_student(str(config.student), 16, seed=config.seed).tower
    average = {name: p.detach().double().numpy() for name, p in start.named_parameters()}
    for number, step in enumerate(steps):
        decay = min(0.3, (1 + number) / (10 + number))
        average = {name: decay * average[name] + (1 - decay) * step.weights[name].double().numpy() for name in average}
    tensors = exported(config)
    for name, expected in average.items():
        assert np.abs(tensors[name].double().numpy() - expected).max() <= 1e-6, name
    last = steps[-1].weights
    assert max((tensors[name] - last[name]).abs().max() for name in average) > 1e-4
    # The student that learns goes on with its own weights.
    other = replace(config, ema=0.0, out=config.out.with_name("without"))
    with recorded() as plain:
        distill(other)
    for name, weight in last.items():
        assert torch.equal(weight, plain[-1].weights[name])


def test_batch_statistics_are_averaged_and_counters_are_not(config: DistillConfig) -> None:
    distill(config)
    distill(replace(config, ema=0.0, out=config.out.with_name("without")))
    ours, plain = exported(config), exported(replace(config, out=config.out.with_name("without")))
    statistics = [name for name in ours if name.endswith("running_mean")]
    assert statistics and not any(torch.equal(ours[name], plain[name]) for name in statistics)
    counters = [name for name in ours if name.endswith("num_batches_tracked")]
    assert counters and all(torch.equal(ours[name], plain[name]) for name in counters)


def test_a_stopped_run_goes_on_with_its_average_bit_for_bit(config: DistillConfig) -> None:
    whole = distill(config)
    stopped = replace(config, out=config.out.with_name("stopped"))
    with pytest.raises(TrainingStopped):
        distill(stopped, should_stop=stop_after(3))
    assert distill(stopped)["weights_sha256"] == whole["weights_sha256"]
