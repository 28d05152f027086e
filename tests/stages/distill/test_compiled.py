"""A student that torch compiles (`compile`) learns the same up to rounding; one that it cannot trains as it is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.distill.config import DistillConfig
from stages.distill.run import distill
from stages.students import build_student
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import small_cache


@pytest.fixture
def config(tmp_path: Path) -> DistillConfig:
    cache = small_cache(tmp_path / "corpus")
    sizes = {"steps": 2, "batch_size": 8, "text_batch_size": 12}
    return distill_config(cache.path, tmp_path / "run", student="timm:test_vit?image_size=32", **sizes)


def metrics(config: DistillConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_compiled_student_gets_the_same_gradients_up_to_rounding(config: DistillConfig) -> None:
    plain = replace(config, out=config.out.with_name("plain"))
    distill(plain)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    said: list[str] = []
    distill(replace(config, compile=True), notice=said.append)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before and not any("compile" in s for s in said)
    for ours, theirs in zip(metrics(config), metrics(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    start = build_student(str(config.student), 16, seed=config.seed).tower.state_dict()
    compiled, weights = (load_file(run.out / "model" / "image_tower.safetensors") for run in (config, plain))
    # Adam makes whole steps of rounding where a gradient is zero in theory, as that of the keys' biases is.
    compared = [name for name in weights if not name.endswith("qkv.bias")]
    apart, went = (
        torch.cat([(weights[name] - other[name]).flatten() for name in compared]).norm() for other in (compiled, start)
    )
    assert apart <= 0.02 * went


def test_what_cannot_be_compiled_trains_as_it_is_and_says_why(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise torch._dynamo.exc.Unsupported("no compiler was found")

    plain = distill(replace(config, out=config.out.with_name("plain")))
    monkeypatch.setattr(torch, "compile", lambda student: refuse)
    said: list[str] = []
    result = distill(replace(config, compile=True), notice=said.append)
    assert result["weights_sha256"] == plain["weights_sha256"]
    assert any("cannot be compiled and trains as it is (no compiler was found" in sentence for sentence in said)
