"""The gradient of a loss over a whole batch, computed with the memory of a small one.

These losses compare every image of a batch with every other, so the sum of the losses of small batches is another loss.
Instead the features of the whole batch are computed first, without a graph; the loss gives its gradient with respect to
them; then each micro batch is computed again, with a graph, and sends its share of that gradient back.

Shape letters: B images of a batch, D width of a feature, H and W pixels, C colours.

**Source:** Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983).
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from stages.distill.losses import full_precision
from stages.images.preprocess import Preprocess
from stages.students import Student

LossOfFeatures = Callable[[Tensor], Tensor]
"""From image_BD, float32 and needing a gradient, to a scalar."""


def backward_of_batch(
    student: Student,
    pixels_BHWC: Tensor,
    loss_of_features: LossOfFeatures,
    *,
    micro_batch_size: int | None,
    randomness: tuple[int, int],
    precision: str,
) -> Tensor:
    """Adds the gradient of the loss over the whole batch to the student's parameters; returns its features.

    With a smaller `micro_batch_size` the gradient is the same up to rounding, and dropout and stochastic depth draw the
    same in both passes. Batch norms see micro batches instead of the whole batch, as they do on several devices; their
    running statistics move once per step.

    Args:
        student: in training mode.
        pixels_BHWC: uint8, on the student's device.
        loss_of_features: the loss, from all features at once.
        micro_batch_size: images of one pass; None for all.
        randomness: seed and step, from which dropout draws.
        precision: the precision of the student's pass, "float32" or "bfloat16".

    Returns:
        image_BD, float32, detached.
    """
    micro_batches = pixels_BHWC.split(micro_batch_size or len(pixels_BHWC))

    def features_of(place: int) -> Tensor:
        # Dropout draws from torch's global generator; this makes the draw a function of seed, step and place.
        torch.manual_seed(_seed_of(*randomness, place))
        pixels_BCHW = to_input(micro_batches[place], student.preprocess)
        with torch.autocast(pixels_BCHW.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return student(pixels_BCHW)

    if len(micro_batches) == 1:
        with_graph = features_of(0)
        features_BD, gradient_BD = _gradient_of_features(with_graph.detach(), loss_of_features)
        with_graph.backward(gradient_BD.to(with_graph.dtype))
        return features_BD

    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    with torch.no_grad():
        first_pass_BD = torch.cat([features_of(place) for place in range(len(micro_batches))])
    features_BD, gradient_BD = _gradient_of_features(first_pass_BD, loss_of_features)
    with torch.no_grad():
        for name, buffer in student.named_buffers():
            buffer.copy_(before[name])
    for place, gradient in enumerate(gradient_BD.split(micro_batches[0].shape[0])):
        with_graph = features_of(place)
        with_graph.backward(gradient.to(with_graph.dtype))
    return features_BD


def to_input(
    pixels_BHWC: Tensor, preprocess: Preprocess, memory_format: torch.memory_format = torch.channels_last
) -> Tensor:
    """Returns pixels_BCHW, float32 on the same device, normalised as `stages.images.preprocess.normalise` does.

    In torch's channels_last the memory stays in the order BHWC; `Student.memory_format` says what a student needs.
    """
    pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float().contiguous(memory_format=memory_format)
    mean = torch.tensor(preprocess.mean, device=pixels_BHWC.device)[:, None, None]
    std = torch.tensor(preprocess.std, device=pixels_BHWC.device)[:, None, None]
    return pixels_BCHW.div_(255).sub_(mean).div_(std)


def _gradient_of_features(features_BD: Tensor, loss_of_features: LossOfFeatures) -> tuple[Tensor, Tensor]:
    leaf_BD = features_BD.float().requires_grad_()
    with full_precision(leaf_BD.device.type):
        loss_of_features(leaf_BD).backward()
    assert leaf_BD.grad is not None
    return leaf_BD.detach(), leaf_BD.grad


def _seed_of(seed: int, step: int, place: int) -> int:
    digest = hashlib.blake2b(f"dropout {seed} {step} {place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
