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

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cache_schema.errors import unknown_name
from stages.distill import streamed_losses

STREAMED_ABOVE = 1 << 24
"""Scores of one matrix, 4,096 by 4,096, above which it is computed by tiles, in less memory and about the same time."""

_FLOAT_BYTES = 4
# Scores and log-probabilities that live at once, of a matrix of scores and of a tile of one.
_SCORES_AT_ONCE = 8
_TILES_AT_ONCE = 8


@dataclass(frozen=True)
class TeacherSide:
    """What only the teacher decides in a step. What losses need of it is computed once, for all students of the step.

    Attributes:
        image_BD: teacher features of the step's images, of any norm and float dtype.
        text_TD: teacher features of the step's sentences; T need not equal B.
    """

    image_BD: Tensor
    text_TD: Tensor
    _targets: dict[tuple[str, float], Tensor] = field(default_factory=dict, repr=False, compare=False)
    _streamed: dict[tuple[str, float], "StreamedTarget"] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def images(self) -> "Side":
        """Returns the images."""
        return Side(self.image_BD)

    @cached_property
    def texts(self) -> "Side":
        """Returns the sentences."""
        return Side(self.text_TD)

    def image_text(self, scale: float) -> Tensor:
        """Returns the logarithm of the softmax over the sentences, for every image, shape (B, T)."""
        return self._target("image_text", self.images, self.texts, scale)

    def text_image(self, scale: float) -> Tensor:
        """Returns the logarithm of the softmax over the images, for every sentence, shape (T, B)."""
        return self._target("text_image", self.texts, self.images, scale)

    def image_image(self, scale: float) -> Tensor:
        """Returns the logarithm of the softmax over the images, for every image, shape (B, B)."""
        return self._target("image_image", self.images, self.images, scale)

    def streamed(self, name: str, scale: float) -> "StreamedTarget":
        """Returns the scores between the images and the `name`, "texts" or "images", for losses that stream them."""
        if (name, scale) not in self._streamed:
            right = streamed_losses.Side(self.text_TD) if name == "texts" else streamed_losses.Side(self.image_BD)
            scores = streamed_losses.Scores(streamed_losses.Side(self.image_BD), right, scale)
            self._streamed[name, scale] = StreamedTarget(scores, scores.normalisers(columns=name == "texts"))
        return self._streamed[name, scale]

    def _target(self, name: str, left: "Side", right: "Side", scale: float) -> Tensor:
        if (name, scale) not in self._targets:
            self._targets[name, scale] = left.log_probabilities(right, scale)
        return self._targets[name, scale]


class StreamedTarget(NamedTuple):
    """The teacher's scores, in tiles, and what they are normalised by."""

    scores: streamed_losses.Scores
    normalisers: streamed_losses.Normalisers


@dataclass(frozen=True)
class Side:
    """Features as losses see them, of unit norm.

    Attributes:
        features_ND: of any norm and float dtype.
    """

    features_ND: Tensor

    @cached_property
    def unit_ND(self) -> Tensor:
        """Returns the features with unit norm, float64."""
        # In float64, so that a logit of 100 is not off by the rounding of a norm; these are N×D values, not N×M.
        return functional.normalize(self.features_ND.double(), dim=-1)

    @cached_property
    def _centred_ND(self) -> Tensor:
        return (self.unit_ND - self.unit_ND.mean(dim=0)).float()

    def log_probabilities(self, right: "Side", scale: float) -> Tensor:
        """Returns log softmax of scale·self·rightᵀ over each row, float32, shape (N, M).

        The mean of a row is taken away first, which a softmax does not see. With it all logits lie near `scale` for
        features that share a direction, as those of CLIP do, and float32 keeps two digits fewer of what tells them
        apart.
        """
        return functional.log_softmax(scale * (self.unit_ND.float() @ right._centred_ND.T), dim=-1)


@dataclass(frozen=True)
class LossInputs:
    """What a loss sees.

    Attributes:
        student: the student's features of the step's images.
        teacher: the teacher's of the same images, and of the step's sentences.
        scale: factor on cosines: the logit scale over the temperature of the loss.
    """

    student: Side
    teacher: TeacherSide
    scale: float

    def is_streamed(self, num_columns: int) -> bool:
        """Returns whether the scores of the images against so many are too many to hold: a matter of their number."""
        return len(self.student.features_ND) * num_columns > STREAMED_ABOVE

    def streamed(self, name: str, right_ND: Tensor | None, factor: float) -> Tensor:
        """Returns `factor` times the divergence of the student's scores against `right_ND`, or its own features."""
        right = None if right_ND is None else streamed_losses.Side(right_ND)
        target = self.teacher.streamed(name, self.scale)
        return streamed_losses.divergence(
            self.student.features_ND, right, target.scores, target.normalisers, scale=self.scale, factor=factor
        )


Loss = Callable[[LossInputs], Tensor]
"""From what a loss sees to a float32 scalar."""


def vl(seen: LossInputs) -> Tensor:
    """Returns how far the student's image-sentence scores are from the teacher's, along rows plus along columns."""
    if seen.is_streamed(len(seen.teacher.text_TD)):
        return seen.streamed("texts", seen.teacher.text_TD, 1.0)
    z, texts, scale = seen.student, seen.teacher.texts, seen.scale
    rows = _divergence(seen.teacher.image_text(scale), z.log_probabilities(texts, scale))
    columns = _divergence(seen.teacher.text_image(scale), texts.log_probabilities(z, scale))
    return rows + columns


def pvl(seen: LossInputs) -> Tensor:
    """Returns how far the scores of student images against teacher images are from those among teacher images."""
    if seen.is_streamed(len(seen.teacher.image_BD)):
        return seen.streamed("images", seen.teacher.image_BD, 2.0)
    ours = seen.student.log_probabilities(seen.teacher.images, seen.scale)
    return 2 * _divergence(seen.teacher.image_image(seen.scale), ours)


def udist(seen: LossInputs) -> Tensor:
    """Returns how far the scores among student images are from those among teacher images."""
    if seen.is_streamed(len(seen.teacher.image_BD)):
        return seen.streamed("images", None, 2.0)
    ours = seen.student.log_probabilities(seen.student, seen.scale)
    return 2 * _divergence(seen.teacher.image_image(seen.scale), ours)


def feature(seen: LossInputs) -> Tensor:
    """Returns the mean of one minus the cosine between each image's student and teacher feature; needs no scale."""
    # For unit vectors 1 − z·u is half the squared distance, which loses no digits when the two are close.
    return ((seen.student.unit_ND - seen.teacher.images.unit_ND).square().sum(dim=-1).mean() / 2).float()


LOSSES: dict[str, Loss] = {"vl": vl, "pvl": pvl, "udist": udist, "feature": feature}


def bytes_of_scores(num_images: int, num_texts: int, dim: int) -> int:
    """Returns about how many bytes the losses of a step hold at once, whatever their weights."""
    held = 0
    for num_columns in (num_images, num_texts):
        if num_images * num_columns > STREAMED_ABOVE:
            tile = streamed_losses.TILE_ROWS * streamed_losses.TILE_COLUMNS
            held += _FLOAT_BYTES * (num_images * dim + _TILES_AT_ONCE * tile)
        else:
            held += _FLOAT_BYTES * _SCORES_AT_ONCE * num_images * num_columns
    return held


def total_loss(
    image_BD: Tensor,
    teacher: TeacherSide,
    *,
    weights: Mapping[str, float],
    temperatures: Mapping[str, float],
    logit_scale: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the weighted sum of the losses and each loss by itself, unweighted, as float32 scalars.

    Losses of weight 0 are not computed. Everything runs in float32 outside autocast, and on a GPU without TF32.

    Args:
        image_BD: student features, of any norm and float dtype.
        teacher: teacher features of the same images, and of the step's sentences.
        weights: loss name -> weight; weights are not renormalised.
        temperatures: loss name -> temperature; `feature` needs none.
        logit_scale: factor on cosines; 100 for CLIP.

    Raises:
        UsageError: a weight names an unknown loss.
    """
    parts = {}
    with full_precision(image_BD.device.type):
        student = Side(image_BD)
        total = torch.zeros((), device=image_BD.device)
        for name, weight in weights.items():
            if name not in LOSSES:
                raise unknown_name("loss", name, LOSSES)
            if weight == 0:
                continue
            parts[name] = LOSSES[name](LossInputs(student, teacher, logit_scale / temperatures.get(name, 1.0)))
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


def _divergence(teacher_NM: Tensor, student_NM: Tensor) -> Tensor:
    """Returns the mean over rows of KL(teacher ‖ student), of logarithms of probabilities, as p·(log p − log q).

    The difference of logarithms keeps its digits where the student is close to the teacher; a difference of two
    entropies would not.
    """
    return functional.kl_div(student_NM, teacher_NM, reduction="batchmean", log_target=True)
