"""Each loss teaches by itself, and what is printed is what is optimised."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stages.distill.config import DistillConfig
from stages.distill.losses import LOSSES
from stages.distill.run import distill
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import small_cache
from tests.stages.distill.recorded_steps import recorded


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cache(tmp_path_factory.mktemp("corpus")).path


@pytest.fixture
def config(cache: Path, tmp_path: Path) -> DistillConfig:
    sizes = {"batch_size": 16, "text_batch_size": 40, "logit_scale": 20.0, "learning_rate": 2e-3, "min_crop": 0.8}
    return distill_config(cache, tmp_path / "run", **sizes)


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_alone_teaches_what_the_student_never_saw(config: DistillConfig, name: str) -> None:
    alone = {**dict.fromkeys(LOSSES, 0.0), name: 1.0}
    asked = replace(config, weights=alone, steps=80, hold_out="0.25", measure_steps=1)
    distill(asked)
    held_out = lines(config.out / "held_out.jsonl")
    first, last = (np.mean([line["loss"] for line in some]) for some in (held_out[:3], held_out[-3:]))
    assert last < 0.7 * first
    metrics = lines(config.out / "metrics.jsonl")
    assert not {*LOSSES} - {name} & metrics[0].keys()


def test_the_loss_printed_is_the_weighted_sum_of_the_losses_printed(config: DistillConfig) -> None:
    weights = {"vl": 0.7, "pvl": 0.3, "udist": 0.2, "feature": 1.5}
    distill(replace(config, weights=weights, steps=3))
    for line in lines(config.out / "metrics.jsonl"):
        assert line["loss"] == pytest.approx(sum(weight * line[name] for name, weight in weights.items()), rel=1e-5)
        assert line["feature"] == pytest.approx(1 - line["cosine"], abs=1e-5)


def test_the_learning_rate_and_gradient_printed_are_those_of_the_optimiser(config: DistillConfig) -> None:
    rates: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(look)
    try:
        with recorded() as steps:
            distill(replace(config, steps=4, warmup_share=0.5))
    finally:
        handle.remove()
    metrics = lines(config.out / "metrics.jsonl")
    assert [line["learning_rate"] for line in metrics] == rates and len(set(rates)) == 4
    for line, step in zip(metrics, steps, strict=True):
        norm = torch.cat([gradient.flatten() for gradient in step.gradients.values()]).norm().item()
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
