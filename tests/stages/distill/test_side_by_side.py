"""Several students in one pass: each ends as if it had learnt alone, and what fails or is behind stops no other."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache_schema.errors import EnvironmentProblem, UsageError
from stages.distill.config import DistillConfig
from stages.distill.run import TrainingStopped, distill, distill_side_by_side
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import small_cache

BATCH_NORM = "timm:test_efficientnet?image_size=32&drop=0.1"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cache(tmp_path_factory.mktemp("corpus")).path


@pytest.fixture
def configs(cache: Path, tmp_path: Path) -> list[DistillConfig]:
    """Three students that differ in everything that each may have for itself."""
    shared = {"batch_size": 8, "text_batch_size": 12, "logit_scale": 20.0}

    def config(name: str, **own: Any) -> DistillConfig:
        return distill_config(cache, tmp_path / "together" / name, **{**shared, **own})

    return [
        config("vit", student="timm:test_vit?image_size=32", steps=5, learning_rate=2e-3),
        config("norm", student=BATCH_NORM, steps=5, norm_batch_size=4, ema=0.5, weights={"feature": 1.0}),
        config("short", student="timm:test_vit?image_size=32", steps=3, clip_grad=0.1, temperatures={"vl": 3.0}),
    ]


def alone(config: DistillConfig) -> DistillConfig:
    return replace(config, out=config.out.parents[1] / "alone" / config.out.name)


def files(config: DistillConfig) -> tuple[bytes, bytes]:
    model = config.out / "model" / "image_tower.safetensors"
    return model.read_bytes(), (config.out / "metrics.jsonl").read_bytes()


def assert_as_alone(configs: list[DistillConfig]) -> None:
    for config in configs:
        distill(alone(config))
        assert files(config) == files(alone(config)), config.out.name


def test_students_end_bit_identical_to_learning_alone(configs: list[DistillConfig]) -> None:
    said: list[str] = []
    results = distill_side_by_side(configs, notice=said.append)
    assert [result["run"] for result in results] == [str(config.out) for config in configs]
    assert [result["steps"] for result in results] == [5, 5, 3]
    assert_as_alone(configs)
    assert any(sentence.startswith("5 steps of 8 images and 12 sentences a step") for sentence in said)


def test_a_stop_and_a_resume_change_nothing_and_who_has_ended_is_left_alone(configs: list[DistillConfig]) -> None:
    with pytest.raises(TrainingStopped, match="stopped at step 4 of 5") as stop:
        distill_side_by_side(configs, should_stop=stop_after(4))
    assert "short" not in str(stop.value) and "vit" in str(stop.value)
    said: list[str] = []
    distill_side_by_side(configs, notice=said.append)
    assert f"run {configs[2].out} has ended before; this is its result" in said
    assert_as_alone(configs)


def test_members_that_are_ahead_wait_for_the_last(configs: list[DistillConfig]) -> None:
    for config, step in zip(configs, (3, 1, 2), strict=True):
        with pytest.raises(TrainingStopped):
            distill(config, should_stop=stop_after(step))
    steps: Counter[int] = Counter()
    distill_side_by_side(configs, progress=lambda done, *_: steps.update([done]))
    assert min(steps) == 2, "the first step that anybody needs"
    assert_as_alone(configs)


def test_a_member_of_a_pass_can_be_gone_on_with_alone_and_the_other_way_round(configs: list[DistillConfig]) -> None:
    with pytest.raises(TrainingStopped):
        distill_side_by_side(configs, should_stop=stop_after(2))
    distill(configs[1])
    distill_side_by_side([configs[2], configs[0]])
    assert_as_alone(configs)


def test_one_that_diverges_is_named_with_exit_code_1_and_the_others_end(
    configs: list[DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from stages.students import Student

    def spoil(module: Any, inputs: object, output: Any) -> Any:
        return output * float("nan") if module.training else None

    made = Student.__init__

    def make(self: Student, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        if "efficientnet" in self.specification:
            self.register_forward_hook(spoil)

    said: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(EnvironmentProblem) as failure:
        patch.setattr(Student, "__init__", make)
        distill_side_by_side(configs, notice=said.append)
    assert failure.value.exit_code == 1
    assert str(failure.value).startswith(f"1 of 3 students failed ({configs[1].out}: step 1 of ")
    assert any("goes no further, the others do" in sentence for sentence in said)
    assert not (configs[1].out / "model").exists()
    assert_as_alone([configs[0], configs[2]])
    distill_side_by_side(configs)
    assert_as_alone([configs[1]])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("memory", [2 << 30, 0], ids=["in memory", "streamed"])
def test_students_of_different_sizes_see_the_same_crops_each_in_its_own_size(
    configs: list[DistillConfig], memory: int
) -> None:
    sizes = [
        replace(config, student=f"timm:test_efficientnet?image_size={size}", picture_memory_bytes=memory, steps=2)
        for config, size in zip(configs, (32, 48, 32), strict=True)
    ]
    distill_side_by_side(sizes)
    # The pictures are PNGs, which no decoder reduces.
    assert_as_alone(sizes)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"batch_size": 9}, "share batch_size, and it is 8 for .*vit and 9 for .*norm"),
        ({"seed": 1}, "share seed"),
        ({"min_crop": 0.5}, "share min_crop"),
        ({"device": "cuda"}, "share device"),
    ],
)
def test_what_the_feed_decides_is_shared(configs: list[DistillConfig], changes: dict[str, Any], shown: str) -> None:
    with pytest.raises(UsageError, match=shown):
        distill_side_by_side([configs[0], replace(configs[1], **changes)])
    assert not configs[0].out.exists()


def test_two_students_cannot_have_one_folder(configs: list[DistillConfig]) -> None:
    with pytest.raises(UsageError, match="is the folder of two students"):
        distill_side_by_side([configs[0], replace(configs[1], out=configs[0].out)])
