"""The first steps of a run, gradient by gradient and weight by weight, against plain torch, NumPy, zarr and Pillow.

Nothing in the settings is a default, so a setting that gets lost on its way to the step is seen here.
"""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.distill.config import DistillConfig
from stages.distill.run import distill
from tests.stages.distill import plain_trajectory
from tests.stages.distill.plain_trajectory import Asked, trajectory
from tests.stages.distill.recorded_steps import first_steps
from tests.stages.distill.telling_corpus import (
    ARRAY,
    PART_ROWS,
    VIEW_SEED,
    extract,
    mine_by_hand,
    telling_config,
    write_sources,
)

STEPS = 3
TOLERANCE = 1e-4
BATCH_NORM = "test_efficientnet"
"""A backbone with batch norm and no kink, so that float32 and float64 stay near each other."""

# What cancels in theory leaves rounding, and Adam makes whole steps of rounding. What these three biases add goes
# through a convolution into another batch norm, which takes the mean away again.
ZERO_IN_THEORY = {"trunk.blocks.2.0.bn2.bias", "trunk.blocks.3.0.bn3.bias", "trunk.blocks.4.0.bn3.bias"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pictures` and their `cache` of three views and mined sentences."""
    folder = write_sources(tmp_path_factory.mktemp("corpus"))
    mine_by_hand(extract(folder, "cache", views=3))
    return folder


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> DistillConfig:
    return telling_config(folder / "cache", tmp_path / "run")


@pytest.fixture
def asked(folder: Path) -> Asked:
    """What `config` says, in plain values; the logit scale is the teacher's, since `config` has none."""
    return Asked(
        cache=folder / "cache",
        pictures=folder / "pictures",
        array=ARRAY,
        part_rows=PART_ROWS,
        backbone="test_vit",
        size=32,
        num_steps=7,
        batch_size=12,
        text_batch_size=17,
        logit_scale=35.0,
        weights={"vl": 0.9, "pvl": 0.2, "udist": 0.4, "feature": 0.6},
        temperatures={"vl": 2.0, "pvl": 1.5, "udist": 4.0},
        peak=2e-3,
        least=1e-3,
        warmup_start=5e-4,
        num_warmup=2,
        weight_decay=0.3,
        min_crop=0.4,
        flip=True,
        seed=11,
        window_parts=2,
    )


def compared(name: str, value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the part of a parameter that is compared, and the part whose gradient is zero in theory."""
    if name in ZERO_IN_THEORY:
        return value[:0], value
    if name.endswith("attn.qkv.bias"):
        # A bias of the keys adds the same to all scores that a query gets, which their softmax does not see.
        queries, keys, values = value.chunk(3)
        return torch.cat([queries, values]), keys
    return value, value[:0]


def distances(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> dict[str, float]:
    """Returns for every parameter how far ours is from the plain one, as a share of the norm of the plain one."""
    found = {}
    for name in plain:
        mine, theirs = compared(name, ours[name])[0].double(), compared(name, plain[name])[0]
        found[name] = ((mine - theirs).norm() / theirs.norm()).item() if mine.any() or theirs.any() else 0.0
    return found


def assert_same_steps(config: DistillConfig, asked: Asked) -> None:
    for step, (ours, plain) in enumerate(zip(first_steps(config, STEPS), trajectory(asked), strict=False)):
        assert ours.gradients.keys() == plain.gradients.keys()
        largest = max(gradient.norm() for gradient in plain.gradients.values())
        for name, gradient in plain.gradients.items():
            assert compared(name, gradient)[1].norm() <= 1e-10 * largest, f"{name} has a gradient and is left out"
        gradients, weights = distances(ours.gradients, plain.gradients), distances(ours.weights, plain.weights)
        for what, far in (("gradient", gradients), ("weight", weights)):
            wrong = {name: f"{share:.1e}" for name, share in far.items() if not share <= TOLERANCE}
            assert not wrong, f"{what}s in step {step}, and how far away they are as a share of their norm: {wrong}"


def test_own_crops_and_random_sentences_give_the_plain_gradients_and_weights(
    config: DistillConfig, asked: Asked
) -> None:
    assert_same_steps(replace(config, student=f"{config.student}&drop=0.2"), replace(asked, drop=0.2))


def test_mined_sentences_and_batch_statistics_give_the_plain_gradients_and_weights(
    config: DistillConfig, asked: Asked
) -> None:
    student = f"timm:{BATCH_NORM}?image_size=32"
    mined = {"mined_share": 0.3, "logit_scale": 60.0, "flip": False, "seed": 12}
    assert_same_steps(
        replace(config, student=student, negatives="mined:by-hand", warmup_share=0.1, **mined),
        replace(asked, backbone=BATCH_NORM, neighbours=asked.cache / "neighbours" / "by-hand", num_warmup=1, **mined),
    )


def test_replayed_views_give_the_plain_gradients_and_weights(config: DistillConfig, asked: Asked) -> None:
    assert_same_steps(replace(config, image_array=None), replace(asked, views=(1, 2), view_seed=VIEW_SEED))


def test_a_second_round_goes_on_from_the_weights_of_the_first(config: DistillConfig, asked: Asked) -> None:
    first = replace(config, out=config.out.with_name("first"), seed=3, steps=1)
    distill(first)
    start = first.out / "model" / "image_tower.safetensors"
    assert_same_steps(replace(config, student=None, from_run=first.out), replace(asked, start=start))


def test_the_plain_program_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(plain_trajectory.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "torch" in imported
    assert not {name.partition(".")[0] for name in imported} & {"stages", "cache_schema", "pipeline", "tests", "None"}
