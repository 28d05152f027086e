"""In which memory layout a student trains: channels_last, in which convolutions are faster, where that is safe."""

import torch
from torch import nn

_BLOCK_CHANNELS = 16
"""Channels of a block of oneDNN on processors with AVX-512; elsewhere it is 8."""


def memory_format_on_cpu(model: nn.Module) -> torch.memory_format:
    """Returns the layout in which `model` may be trained on the CPU: channels_last, or contiguous where that is unsafe.

    oneDNN 3.13 (torch 2.15) first gathers the pixels that a pointwise convolution with a stride looks at. In
    channels_last, in the gradient of the weights, it gathers whole blocks of channels into a buffer that is made for
    the channels there are: with fewer input channels than a block it writes past the buffer, so that the process
    crashes, hangs or learns from wrong gradients. Stems of FastViT, MobileCLIP, MobileOne and RepVGG have such layers.

    **Source:** github.com/uxlfoundation/oneDNN/issues/6035.
    """
    unsafe = any(_is_unsafe(module) for module in model.modules() if isinstance(module, nn.Conv2d))
    return torch.contiguous_format if unsafe else torch.channels_last


def _is_unsafe(layer: nn.Conv2d) -> bool:
    is_pointwise_with_stride = max(layer.kernel_size) == 1 and max(layer.stride) > 1
    return is_pointwise_with_stride and layer.in_channels // layer.groups < _BLOCK_CHANNELS
