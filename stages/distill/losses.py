"""The losses that teach a student image tower from cached teacher features of unpaired images and sentences.

Shape letters: B images of a batch, T sentences of a batch, D width of a feature.

Every loss takes features of any norm and normalises them itself. With s the logit scale, u teacher image, v teacher
text and z student image features of unit norm, and D(T, S; t) the mean over rows of KL(softmax(T/t) ‖ softmax(S/t)):

    vl       D(s·u·vᵀ, s·z·vᵀ) + D of the transposes
    pvl      2·D(s·u·uᵀ, s·z·uᵀ)
    udist    2·D(s·u·uᵀ, s·z·zᵀ)
    feature  mean of 1 − z·u

There is no factor t², and the diagonal of the square matrices stays in.

**Source:** Sun et al., "DIME-FM: DIstilling Multimodal and Efficient Foundation Models" (arXiv 2303.18232), and
`get_loss` of its published training code for the exact factors; `feature` is not part of that method.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from cache_schema.errors import unknown_name


class Loss(Protocol):
    """A loss over one batch; returns a float32 scalar. `feature` looks at neither sentences, scale nor temperature."""

    def __call__(
        self,
        image_BD: Tensor,
        teacher_image_BD: Tensor,
        text_TD: Tensor,
        *,
        logit_scale: float,
        temperature: float,
    ) -> Tensor: ...


def vl(
    image_BD: Tensor, teacher_image_BD: Tensor, text_TD: Tensor, *, logit_scale: float, temperature: float
) -> Tensor:
    """Returns how far the student's image-sentence scores are from the teacher's, along rows plus along columns."""
    z, u, v = _unit(image_BD), _unit(teacher_image_BD), _unit(text_TD)
    scale = logit_scale / temperature
    rows = _divergence(_row_logits(u, v, scale), _row_logits(z, v, scale))
    columns = _divergence(_row_logits(v, u, scale), _row_logits(v, z, scale))
    return rows + columns


def pvl(
    image_BD: Tensor, teacher_image_BD: Tensor, text_TD: Tensor, *, logit_scale: float, temperature: float
) -> Tensor:
    """Returns how far the scores of student images against teacher images are from those among teacher images."""
    z, u = _unit(image_BD), _unit(teacher_image_BD)
    scale = logit_scale / temperature
    return 2 * _divergence(_row_logits(u, u, scale), _row_logits(z, u, scale))


def udist(
    image_BD: Tensor, teacher_image_BD: Tensor, text_TD: Tensor, *, logit_scale: float, temperature: float
) -> Tensor:
    """Returns how far the scores among student images are from those among teacher images."""
    z, u = _unit(image_BD), _unit(teacher_image_BD)
    scale = logit_scale / temperature
    return 2 * _divergence(_row_logits(u, u, scale), _row_logits(z, z, scale))


def feature(
    image_BD: Tensor, teacher_image_BD: Tensor, text_TD: Tensor, *, logit_scale: float, temperature: float
) -> Tensor:
    """Returns the mean of one minus the cosine between each image's student and teacher feature."""
    z, u = _unit(image_BD), _unit(teacher_image_BD)
    # For unit vectors 1 − z·u is half the squared distance, which loses no digits when the two are close.
    return ((z - u).square().sum(dim=-1).mean() / 2).float()


LOSSES: dict[str, Loss] = {"vl": vl, "pvl": pvl, "udist": udist, "feature": feature}


def total_loss(
    image_BD: Tensor,
    teacher_image_BD: Tensor,
    text_TD: Tensor,
    *,
    weights: Mapping[str, float],
    temperatures: Mapping[str, float],
    logit_scale: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the weighted sum of the losses and each loss by itself, unweighted, as float32 scalars.

    Losses of weight 0 are not computed. Everything runs in float32 outside autocast, and on a GPU without TF32.

    Args:
        image_BD: student features, of any norm and float dtype.
        teacher_image_BD: teacher features of the same images.
        text_TD: teacher features of the sentences; T need not equal B.
        weights: loss name -> weight; weights are not renormalised.
        temperatures: loss name -> temperature; `feature` needs none.
        logit_scale: factor on cosines; 100 for CLIP.

    Raises:
        UsageError: a weight names an unknown loss.
    """
    parts = {}
    with full_precision(image_BD.device.type):
        total = torch.zeros((), device=image_BD.device)
        for name, weight in weights.items():
            if name not in LOSSES:
                raise unknown_name("loss", name, LOSSES)
            if weight == 0:
                continue
            parts[name] = LOSSES[name](
                image_BD,
                teacher_image_BD,
                text_TD,
                logit_scale=logit_scale,
                temperature=temperatures.get(name, 1.0),
            )
            total = total + weight * parts[name]
    return total, parts


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Context in which float32 matrix products are computed in float32, without autocast.

    The backward pass of a loss belongs into the same context, because autograd looks at these settings again.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _unit(features_ND: Tensor) -> Tensor:
    # In float64, so that a logit of 100 is not off by the rounding of a norm; these are N×D values, not N×M.
    return functional.normalize(features_ND.double(), dim=-1)


def _row_logits(left_ND: Tensor, right_MD: Tensor, scale: float) -> Tensor:
    """Returns scale·left·rightᵀ up to a constant per row, which a softmax over the row does not see, in float32.

    The constant is the row's mean. Without it all logits lie near `scale` for features that share a direction, as
    those of CLIP do, and float32 keeps two digits fewer of what tells them apart.
    """
    centred_MD = right_MD - right_MD.mean(dim=0)
    return scale * (left_ND.float() @ centred_MD.float().T)


def _divergence(teacher_NM: Tensor, student_NM: Tensor) -> Tensor:
    """Returns the mean over rows of KL(softmax(teacher) ‖ softmax(student)), as p·(log p − log q).

    The difference of logarithms keeps its digits where the student is close to the teacher; a difference of two
    entropies would not.
    """
    return functional.kl_div(
        functional.log_softmax(student_NM, dim=-1),
        functional.log_softmax(teacher_NM, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
