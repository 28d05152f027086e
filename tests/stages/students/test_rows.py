"""Whether rows share something is found in the layers, and agrees with passing them together and apart."""

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from stages.images.preprocess import Preprocess
from stages.students import build_student
from stages.students.base import CLIP_MEAN, CLIP_STD, Student, TowerDescription
from stages.students.rows import rows_share_nothing

PLAIN = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}


def by_hand(**changes: object) -> Student:
    """Returns a student of open_clip's own transformer, or of its ResNet."""
    preprocess = Preprocess(size=(32, 32), mean=CLIP_MEAN, std=CLIP_STD)
    return Student(TowerDescription("open_clip:by-hand", 8, {**PLAIN, **changes}, False, preprocess), seed=0)


@torch.no_grad()
def is_seen_to_be_independent(model: nn.Module, shape: tuple[int, ...] = (3, 32, 32)) -> bool:
    """Returns whether the rows of a pass come out the same apart, and whatever the seed."""
    model = model.double().train()
    noise = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        # Branches that start as zero would hide what happens in them.
        parameter.add_(0.05 * torch.randn(parameter.shape, dtype=torch.float64, generator=noise))
    inputs = torch.randn(6, *shape, dtype=torch.float64, generator=noise)

    def pass_of(rows: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(rows)

    together = pass_of(inputs, 0)
    apart = torch.cat([pass_of(rows, 0) for rows in inputs.split([2, 4])])
    return all(torch.allclose(together, other, rtol=1e-6, atol=1e-9) for other in (apart, pass_of(inputs, 3)))


@pytest.mark.parametrize(
    ("specification", "independent"),
    [
        ("timm:test_vit?image_size=32", True),
        ("timm:test_vit?image_size=32&drop=0.5", False),
        ("timm:test_vit?image_size=32&drop_path=0.9", False),
        ("timm:test_convnext?image_size=32", True),
        ("timm:test_convnext?image_size=32&drop_path=0.9", False),
        ("timm:test_nfnet?image_size=32", True),
        ("timm:test_mambaout?image_size=32", True),
        ("timm:test_efficientnet_gn?image_size=32", True),
        ("timm:test_efficientnet_ln?image_size=32", True),
        ("timm:test_efficientnet_evos?image_size=32", True),
        ("timm:test_efficientnet?image_size=32", False),
        ("timm:test_resnet?image_size=32", False),
        ("timm:test_byobnet?image_size=32", False),
        ("timm:levit_128s?image_size=224", False),
        ("timm:fastvit_t8?image_size=64", False),
    ],
)
def test_students_of_timm_share_what_passing_their_rows_apart_shows(specification: str, independent: bool) -> None:
    student = build_student(specification, 8, seed=0)
    assert student.rows_are_independent is independent
    assert is_seen_to_be_independent(student, (3, *student.preprocess.size)) is independent


@pytest.mark.parametrize(
    ("changes", "independent"),
    [
        ({}, True),
        ({"patch_dropout": 0.5}, False),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, True),
        ({"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}, False),
    ],
)
def test_towers_of_open_clip_share_what_passing_their_rows_apart_shows(changes: dict, independent: bool) -> None:
    student = by_hand(**changes)
    assert student.rows_are_independent is independent
    assert is_seen_to_be_independent(student) is independent


class Attention(nn.Module):
    """Attention of rows over their own places, as torch writes it."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.attention(inputs, inputs, inputs, need_weights=False)[0]


class Rate(nn.Module):
    """A rate of dropout that is only a number, as the heads of MobileNets have it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_rate = rate

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(inputs, self.drop_rate, self.training)


class Rotation(nn.Module):
    """Rotary positions, moved at random in training or not."""

    def __init__(self, shift: float | None) -> None:
        super().__init__()
        self.rope = timm.layers.RotaryEmbeddingDinoV3(8, feat_shape=(4, 4), shift_coords=shift)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.rope.get_embed((4, 4)).sum()


@pytest.mark.parametrize(
    ("layer", "shape", "independent"),
    [
        (nn.BatchNorm1d(8), (8,), False),
        (nn.BatchNorm2d(8, track_running_stats=False), (8, 4, 4), False),
        (timm.layers.EvoNorm2dB0(8), (8, 4, 4), False),
        (timm.layers.EvoNorm2dS0(8, groups=2), (8, 4, 4), True),
        (timm.layers.BatchNormAct2d(8), (8, 4, 4), False),
        (timm.layers.FrozenBatchNormAct2d(8), (8, 4, 4), True),
        (nn.LayerNorm(8), (8,), True),
        (nn.GroupNorm(2, 8), (8, 4, 4), True),
        (nn.InstanceNorm2d(8), (8, 4, 4), True),
        (nn.Dropout(0.5), (8,), False),
        (nn.Dropout(0.0), (8,), True),
        (nn.Dropout2d(0.5), (8, 4, 4), False),
        (nn.AlphaDropout(0.5), (8,), False),
        (nn.RReLU(), (8,), False),
        (timm.layers.DropPath(0.5), (8,), False),
        (timm.layers.DropPath(0.0), (8,), True),
        (timm.layers.DropBlock2d(0.5, 2), (8, 4, 4), False),
        (timm.layers.PatchDropout(0.5, num_prefix_tokens=0), (16, 8), False),
        (Attention(0.5), (4, 8), False),
        (Attention(0.0), (4, 8), True),
        (Rate(0.5), (8,), False),
        (Rate(0.0), (8,), True),
        (Rotation(0.5), (8,), False),
        (Rotation(None), (8,), True),
        (nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True), None, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_share_what_passing_their_rows_apart_shows(
    layer: nn.Module, shape: tuple[int, ...] | None, independent: bool
) -> None:
    assert rows_share_nothing(nn.Sequential(nn.Identity(), layer)) is independent
    if shape is not None:
        assert is_seen_to_be_independent(layer, shape) is independent


def test_a_frozen_statistic_that_only_evaluation_uses_still_counts() -> None:
    # Its rows come out the same apart, but what evaluation uses afterwards depends on how they were passed.
    assert not rows_share_nothing(nn.InstanceNorm2d(8, track_running_stats=True))
