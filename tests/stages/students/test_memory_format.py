"""Students train in channels_last, save for those with layers whose gradients oneDNN spoils in it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stages.distill.gradient_cache import to_input
from stages.images.preprocess import Preprocess, normalise
from stages.students import build_student
from stages.students.memory_format import memory_format_on_cpu

ROOT = Path(__file__).parents[3]

# A step of each layer in the format that is chosen, against torch's own arithmetic in the contiguous one.
_GRADIENTS = """
import torch
from torch import nn
from stages.students.memory_format import memory_format_on_cpu

torch.set_num_threads(1)
for inputs, outputs, kernel, stride, groups, size in {layers}:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
    found = []
    for chosen in (memory_format_on_cpu(layer), torch.contiguous_format):
        layer.zero_grad()
        layer.to(memory_format=chosen)
        torch.manual_seed(0)
        pixels = torch.randn(2, inputs, size, size).contiguous(memory_format=chosen).requires_grad_()
        for _ in range(3):
            layer(pixels).square().mean().backward()
        found.append((layer.weight.grad.clone(), pixels.grad))
    for ours, plain in zip(*found):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)
"""


def convolution(inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int, groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, stride, groups=groups))


@pytest.mark.parametrize(
    "layer",
    [
        convolution(3, 48, 1, 2),
        convolution(15, 8, 1, 2),
        convolution(8, 3, 1, 4),
        convolution(32, 32, 1, 2, groups=4),
    ],
)
def test_a_pointwise_convolution_with_a_stride_and_few_channels_trains_contiguous(layer: nn.Module) -> None:
    assert memory_format_on_cpu(layer) == torch.contiguous_format


@pytest.mark.parametrize(
    "layer",
    [
        convolution(16, 48, 1, 2),
        convolution(64, 128, 1, 2),
        convolution(3, 48, 1, 1),
        convolution(3, 48, 3, 2),
        convolution(3, 48, (1, 3), 2),
        nn.Linear(3, 8),
    ],
)
def test_every_other_layer_trains_in_channels_last(layer: nn.Module) -> None:
    assert memory_format_on_cpu(layer) == torch.channels_last


def test_the_gradients_of_every_layer_in_its_format_are_those_of_the_contiguous_one() -> None:
    # (8, 16) at 64 and (3, 48) at 224 pixels crash or hang in channels_last; the others are what students are made of.
    layers = [(3, 48, 1, 2, 1, 224), (8, 16, 1, 2, 1, 64), (3, 16, 1, 2, 1, 64), (12, 24, 1, 4, 1, 64)]
    layers += [(16, 32, 1, 2, 1, 64), (24, 56, 1, 2, 1, 57), (3, 48, 3, 2, 1, 64), (48, 48, 3, 2, 48, 32)]
    layers += [(48, 96, 7, 2, 48, 32), (64, 128, 3, 1, 8, 32), (3, 8, 4, 4, 1, 64), (40, 24, 5, 1, 8, 16)]
    script = _GRADIENTS.format(layers=layers)
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("specification", "wanted"),
    [
        ("timm:fastvit_t8?image_size=64", torch.contiguous_format),
        ("timm:mobileone_s0?image_size=64", torch.contiguous_format),
        ("timm:repvgg_a0?image_size=64", torch.contiguous_format),
        ("timm:resnet10t?image_size=64", torch.channels_last),
        ("timm:convnext_atto?image_size=64", torch.channels_last),
        ("timm:mobilenetv3_small_050?image_size=64", torch.channels_last),
        ("open_clip:ViT-S-32-alt?image_size=64", torch.channels_last),
    ],
)
def test_a_student_knows_its_format_where_it_is(specification: str, wanted: torch.memory_format) -> None:
    student = build_student(specification, 8, seed=0)
    assert student.memory_format == wanted
    # No GPU is needed to ask: any other device than the CPU has no oneDNN.
    assert student.to("meta").memory_format == torch.channels_last


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_pictures_lie_in_the_format_of_the_student_and_are_the_same_in_both(memory_format: torch.memory_format) -> None:
    preprocess = Preprocess(size=(9, 7), mean=(0.48, 0.45, 0.40), std=(0.26, 0.27, 0.28))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), np.uint8)
    found = to_input(torch.from_numpy(pixels), preprocess, memory_format)
    assert found.is_contiguous(memory_format=memory_format)
    assert np.array_equal(found.numpy(), normalise(pixels, preprocess))
    assert to_input(torch.from_numpy(pixels), preprocess).is_contiguous(memory_format=torch.channels_last)
