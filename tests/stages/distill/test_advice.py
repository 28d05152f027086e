"""What a refusal advises works: each message is met, its words are found, and what they say is done."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cache_schema.cache import Cache
from cache_schema.errors import DivergedError, PipelineError
from stages.distill.config import DistillConfig
from stages.distill.run import TrainingStopped, distill
from stages.students import Student
from tests.corpora.by_hand import select
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import small_cache

STUDENT = "timm:test_vit?image_size=32"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    made = small_cache(tmp_path_factory.mktemp("corpus"))
    select(made, "few", range(5))
    return made


@pytest.fixture
def config(cache: Cache, tmp_path: Path) -> DistillConfig:
    sizes = {"steps": 3, "batch_size": 8, "text_batch_size": 12, "checkpoint_steps": 1, "keep_checkpoints": 5}
    return distill_config(cache.path, tmp_path / "run", student=STUDENT, **sizes)


Changes = dict[str, Any]


@dataclass(frozen=True)
class Advice:
    """A request that is refused, a few words of the advice, and the request that follows it.

    Attributes:
        asked: what is asked beside the usual.
        words: a part of the message, as a pattern.
        followed: what is asked instead.
        before: done to the configuration first.
    """

    asked: Changes
    words: str
    followed: Changes
    before: Callable[[DistillConfig], object] = field(default=lambda config: None)


def finished(config: DistillConfig) -> None:
    distill(config)


def stopped(config: DistillConfig) -> None:
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=stop_after(2))


def all_damaged(config: DistillConfig) -> None:
    stopped(config)
    for path in (config.out / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"damaged")


def first_round(config: DistillConfig) -> None:
    distill(replace(config, out=config.out.with_name("first")))


def not_a_run(config: DistillConfig) -> None:
    config.out.mkdir()
    (config.out / "thesis.tex").touch()


def beside(name: str) -> Callable[[DistillConfig], Path]:
    return lambda config: config.out.with_name(name)


ADVICE = {
    "batch too large": Advice({"batch_size": 999}, "use a batch size from 1 to 48", {"batch_size": 48}),
    "too many sentences": Advice({"text_batch_size": 999}, "use 1 to 80", {"text_batch_size": 80}),
    "selection too small": Advice(
        {"images": "few"}, "use a batch size from 1 to 5", {"images": "few", "batch_size": 5}
    ),
    "no such selection": Advice({"images": "fev"}, "did you mean 'few'", {"images": "few", "batch_size": 4}),
    "nothing to learn": Advice(
        {"weights": {"vl": 0, "pvl": 0}}, "give one of them a weight", {"weights": {"vl": 0, "pvl": 0.1}}
    ),
    "unknown loss": Advice({"weights": {"udits": 1}}, "did you mean 'udist'", {"weights": {"udist": 1}}),
    "unknown negatives": Advice({"negatives": "hard"}, "use random", {"negatives": "random"}),
    "share of none": Advice({"hold_out": "0.0001"}, "name a share that leaves some", {"hold_out": "0.2"}),
    "no share": Advice({"hold_out": "2"}, "above 0 and below 1, or name a selection", {"hold_out": "few"}),
    "no stored pixels": Advice({"pictures": "stored"}, "or drop it", {}),
    "other settings: repeat": Advice({"min_crop": 0.5}, "repeat its options", {}, stopped),
    "other settings: another folder": Advice(
        {"min_crop": 0.5}, "use another --out", {"min_crop": 0.5, "out": beside("other")}, stopped
    ),
    "other settings: fresh": Advice({"seed": 4}, "start over with --fresh", {"seed": 4, "fresh": True}, stopped),
    "other settings: amend": Advice(
        {"learning_rate": 1e-4}, "with --amend REASON", {"learning_rate": 1e-4, "amend": "as advised"}, stopped
    ),
    "amend nothing": Advice({"amend": "so"}, "or drop it", {}, stopped),
    "amend an end": Advice(
        {"amend": "so", "weights": {"vl": 1}}, "more --steps", {"amend": "so", "steps": 5}, finished
    ),
    "amend nothing there": Advice({"amend": "so"}, "drop it", {}),
    "all checkpoints damaged": Advice({}, "start over with --fresh", {"fresh": True}, all_damaged),
    "from itself": Advice(
        {"from_run": lambda config: config.out},
        "name another folder for the new round",
        {"from_run": lambda config: config.out, "out": beside("second")},
        finished,
    ),
    "from another architecture": Advice(
        {"from_run": beside("first"), "student": "timm:test_efficientnet?image_size=32"},
        "or leave it out",
        {"from_run": beside("first"), "student": None},
        first_round,
    ),
    "from a step that is not kept": Advice(
        {"from_run": beside("first@9")},
        "name one of its steps 1, 2, 3, or newest",
        {"from_run": beside("first@2")},
        first_round,
    ),
    "not a run": Advice({}, "choose another --out", {"out": beside("other")}, not_a_run),
    "unknown device": Advice({"device": "gpu"}, "use auto, cpu", {"device": "cpu"}),
    "unknown student": Advice(
        {"student": "timm:test_vti?image_size=32"},
        "did you mean 'test_vit'",
        {"student": "timm:test_vit?image_size=32"},
    ),
    "picture size too small": Advice(
        {"student": "timm:test_vit?image_size=4"}, "use image_size=32", {"student": "timm:test_vit?image_size=32"}
    ),
    "another size than the only one": Advice(
        {"student": "timm:test_vit3?image_size=64"}, "use image_size=160", {"student": "timm:test_vit3?image_size=160"}
    ),
}


def asked_of(config: DistillConfig, changes: Changes) -> DistillConfig:
    return replace(config, **{name: v(config) if callable(v) else v for name, v in changes.items()})


@pytest.mark.parametrize("case", ADVICE)
def test_the_advice_is_given_and_works(config: DistillConfig, case: str) -> None:
    advice = ADVICE[case]
    advice.before(config)
    with pytest.raises(PipelineError, match=advice.words):
        distill(asked_of(config, advice.asked))
    result = distill(asked_of(config, advice.followed))
    assert result["steps"] >= 3


@pytest.mark.parametrize(
    "followed",
    [
        {"learning_rate": 1e-4, "amend": "lower, as advised"},
        {"learning_rate": 1e-4, "skip_nonfinite": 2, "amend": "as advised"},
        {"learning_rate": 1e-4, "clip_grad": 1.0, "amend": "as advised"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_run_that_diverged_goes_on_from_its_last_checkpoint_as_advised(
    config: DistillConfig, followed: Changes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Student.__init__

    def spoil(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor | None:
        return output * float("inf") if module.training else None

    def make(self: Student, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.register_forward_hook(spoil)

    stopped(config)
    with monkeypatch.context() as patch, pytest.raises(DivergedError) as diverged:
        patch.setattr(Student, "__init__", make)
        distill(config)
    assert "go on from it with a lower --learning-rate and --amend REASON" in str(diverged.value)
    assert "--skip-nonfinite or --clip-grad beside it" in str(diverged.value)
    said: list[str] = []
    assert distill(replace(config, **followed), notice=said.append)["steps"] == 3
    assert any(f"resuming {config.out} after step 2 of 3" in sentence for sentence in said)


def test_a_run_whose_cache_is_gone_says_so_and_goes_on_when_it_is_back(config: DistillConfig, tmp_path: Path) -> None:
    here = replace(config, cache=tmp_path / "cache")
    shutil.copytree(config.cache, here.cache)
    stopped(here)
    here.cache.rename(tmp_path / "away")
    with pytest.raises(PipelineError, match="cache"):
        distill(here)
    (tmp_path / "away").rename(here.cache)
    assert distill(here)["steps"] == 3
