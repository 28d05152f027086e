"""Divergences between softmaxes over more scores than memory holds: computed by tiles, with their gradient.

For scores scale·left·rightᵀ of unit features, D is the mean over rows of KL(softmax(teacher) ‖ softmax(student)); along
columns, the same of the transposes. Two passes over tiles: the first sums every softmax's denominator, the second knows
both distributions of a tile at once, adds up p·(log p − log q), which keeps its digits where the two are close, and
the gradient. No matrix of scores exists.

The formulas are those of `stages.distill.losses`, which uses these above a size. Shape letters: N rows and M columns of
the scores, D width of a feature.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

TILE_ROWS, TILE_COLUMNS = 2_048, 4_096
"""Scores of a tile: 34 MB a matrix in float32, and some five of them live at once."""


@dataclass(frozen=True)
class Side:
    """Features of one side of the scores, of any norm; made unit and centred a block at a time.

    A softmax does not see what all its scores share. Without the mean of the features they lie near 0 instead of near
    the scale, and float32 keeps two digits more of what tells them apart.
    """

    features_ND: Tensor

    @cached_property
    def mean_D(self) -> Tensor:
        """Returns the mean of the unit features, float64."""
        blocks = self.features_ND.split(TILE_COLUMNS)
        return torch.stack([_unit(block).sum(dim=0) for block in blocks]).sum(dim=0) / len(self.features_ND)

    def centred(self, rows: slice) -> Tensor:
        """Returns a block of the unit features without their mean, float64."""
        return _unit(self.features_ND[rows]) - self.mean_D

    def centred_dot(self, direction_D: Tensor) -> Tensor:
        """Returns the product of every centred feature with `direction_D`, float64, shape (N,)."""
        return torch.cat([self.centred(rows) @ direction_D for rows in _slices(len(self.features_ND), TILE_COLUMNS)])


class Normaliser(NamedTuple):
    """The logarithm of each softmax's denominator, in two parts: the largest score, and what the sum adds to it.

    Taken from a score one after the other, the second keeps its digits where one score outweighs all others.
    """

    largest: Tensor
    rest: Tensor

    def of(self, some: slice) -> "Normaliser":
        """Returns those of some of the softmaxes."""
        return Normaliser(self.largest[some], self.rest[some])


class Normalisers(NamedTuple):
    """Those of the softmaxes along rows, shape (N,), and, where asked for, along columns, shape (M,); float32."""

    of_rows: Normaliser
    of_columns: Normaliser | None


class Scores:
    """scale·left·rightᵀ, in tiles, as a softmax along rows and one along columns see it.

    Args:
        left: N features.
        right: M features.
        scale: factor on cosines.
    """

    def __init__(self, left: Side, right: Side, scale: float) -> None:
        self.left = left
        self.right = right
        self.scale = scale
        # What centring both sides takes from the scores and a softmax does see: per column along rows, and vice versa.
        self._of_column = (scale * right.centred_dot(left.mean_D)).float()
        self._of_row = (scale * left.centred_dot(right.mean_D)).float()

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.left.features_ND), len(self.right.features_ND)

    def rows_of(self, rows: slice) -> Tensor:
        """Returns the left side of the tiles of these rows, float32, for `tile`."""
        return (self.scale * self.left.centred(rows)).float()

    def along_rows(self, tile: Tensor, columns: slice) -> Tensor:
        """Returns the scores of a tile up to a constant of each row."""
        return tile + self._of_column[columns]

    def along_columns(self, tile: Tensor, rows: slice) -> Tensor:
        """Returns the scores of a tile up to a constant of each column."""
        return tile + self._of_row[rows, None]

    def normalisers(self, *, columns: bool) -> Normalisers:
        """Returns the normalisers along rows, and with `columns` those along columns."""
        num_rows, num_columns = self.shape
        of_rows, of_columns = (_Sums(length, self.left.features_ND.device) for length in self.shape)
        for at_rows in _slices(num_rows, TILE_ROWS):
            left = self.rows_of(at_rows)
            for at_columns in _slices(num_columns, TILE_COLUMNS):
                tile = left @ self.right.centred(at_columns).float().T
                of_rows.add(at_rows, self.along_rows(tile, at_columns))
                if columns:
                    of_columns.add(at_columns, self.along_columns(tile, at_rows).T)
        return Normalisers(of_rows.normaliser(), of_columns.normaliser() if columns else None)


class _Sums:
    """The sums of exponentials of some softmaxes, of which tiles become known one after the other."""

    def __init__(self, length: int, device: torch.device) -> None:
        self._largest = torch.full((length,), -torch.inf, device=device)
        self._sum = torch.zeros(length, dtype=torch.float64, device=device)

    def add(self, some: slice, scores: Tensor) -> None:
        """Adds more scores, a row for each of `some` softmaxes. Writes into them."""
        before = self._largest[some]
        largest = torch.maximum(before, scores.amax(dim=1))
        added = scores.sub_(largest[:, None]).exp_().sum(dim=1)
        self._sum[some] = self._sum[some] * (before - largest).double().exp() + added
        self._largest[some] = largest

    def normaliser(self) -> Normaliser:
        return Normaliser(self._largest, self._sum.log().float())


def divergence(
    student_ND: Tensor, right: Side | None, teacher: Scores, known: Normalisers, *, scale: float, factor: float = 1.0
) -> Tensor:
    """Returns `factor` times the divergence of the student's scores from the teacher's, float32, differentiable.

    Along rows, and along columns too where `known` has those.

    Args:
        student_ND: of any norm; the only input with a gradient.
        right: what the student's features are compared with; None for themselves.
        teacher: the teacher's scores, as many.
        known: its normalisers.
        scale: factor on the student's cosines.
        factor: on the whole.
    """
    return _Divergence.apply(student_ND, right, teacher, known, scale, factor)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_ND: Tensor,
        right: Side | None,
        teacher: Scores,
        known: Normalisers,
        scale: float,
        factor: float,
    ) -> Tensor:
        left = Side(student_ND.detach())
        student = Scores(left, right or left, scale)
        value, gradient_ND = _second_pass(student, teacher, known, itself=right is None)
        if ctx.needs_input_grad[0]:
            ctx.gradient_ND = _through_norms(gradient_ND.mul_(factor), left)
        return (factor * value).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_ND, ctx.gradient_ND = ctx.gradient_ND, None
        if gradient_ND is None:
            raise RuntimeError(
                "the gradient of a loss by tiles is given away at the first backward pass: compute it anew"
            )
        # In its own place: at a size where losses are streamed, a second copy counts.
        return gradient_ND.mul_(gradients[0]), None, None, None, None, None


def _second_pass(student: Scores, teacher: Scores, theirs: Normalisers, *, itself: bool) -> tuple[Tensor, Tensor]:
    """Returns the divergence, and its gradient with respect to the student's unit features, float32 of shape (N, D)."""
    has_columns = theirs.of_columns is not None
    ours = student.normalisers(columns=has_columns)
    num_rows, num_columns = student.shape
    features_ND = student.left.features_ND
    gradient_ND = torch.zeros(features_ND.shape, device=features_ND.device)
    value = torch.zeros((), dtype=torch.float64, device=features_ND.device)
    # How much of the other side's mean belongs to each row's gradient; along rows the weights of a row sum to zero.
    of_mean_N = torch.zeros(num_rows, dtype=torch.float64, device=features_ND.device)
    for at_rows in _slices(num_rows, TILE_ROWS):
        left, teacher_left = student.rows_of(at_rows), teacher.rows_of(at_rows)
        for at_columns in _slices(num_columns, TILE_COLUMNS):
            right = student.right.centred(at_columns).float()
            tile = left @ right.T
            teacher_tile = teacher_left @ teacher.right.centred(at_columns).float().T
            of_tile, weights = _compared(
                _logarithms(teacher.along_rows(teacher_tile, at_columns), theirs.of_rows.of(at_rows)),
                _logarithms(student.along_rows(tile, at_columns), ours.of_rows.of(at_rows)),
            )
            value += of_tile / num_rows
            weights *= student.scale / num_rows
            if theirs.of_columns is not None and ours.of_columns is not None:
                of_tile, along_columns = _compared(
                    _logarithms(teacher.along_columns(teacher_tile, at_rows).T, theirs.of_columns.of(at_columns)).T,
                    _logarithms(student.along_columns(tile, at_rows).T, ours.of_columns.of(at_columns)).T,
                )
                value += of_tile / num_columns
                along_columns *= student.scale / num_columns
                of_mean_N[at_rows] += along_columns.sum(dim=1, dtype=torch.float64)
                weights += along_columns
            gradient_ND[at_rows].addmm_(weights, right)
            if itself:
                gradient_ND[at_columns].addmm_(weights.T, left, alpha=1 / student.scale)
                of_mean_N[at_columns] += weights.sum(dim=0, dtype=torch.float64)
    for at_rows in _slices(num_rows, TILE_ROWS):
        gradient_ND[at_rows] += torch.outer(of_mean_N[at_rows], student.right.mean_D).float()
    return value, gradient_ND


def _logarithms(scores: Tensor, normaliser: Normaliser) -> Tensor:
    """Returns the logarithms of the probabilities of scores, a row for each softmax, in the place of the scores."""
    return scores.sub_(normaliser.largest[:, None]).sub_(normaliser.rest[:, None])


def _compared(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum of p·(log p − log q), float64, and q − p. Writes into both arguments."""
    p = log_p.exp()
    q = log_q.exp()
    summed = log_p.sub_(log_q).mul_(p).sum(dim=1).double().sum()
    return summed, q.sub_(p)


def _through_norms(gradient_ND: Tensor, side: Side) -> Tensor:
    """Turns, in place, a gradient with respect to unit features into one with respect to the features themselves."""
    for rows in _slices(len(gradient_ND), TILE_COLUMNS):
        features, wanted = side.features_ND[rows].double(), gradient_ND[rows].double()
        norms = features.norm(dim=1, keepdim=True).clamp_min(_LEAST_NORM)
        unit = features / norms
        gradient_ND[rows] = (wanted - unit * (wanted * unit).sum(dim=1, keepdim=True)) / norms
    return gradient_ND


_LEAST_NORM = 1e-12
"""That of `torch.nn.functional.normalize`."""


def _unit(features_ND: Tensor) -> Tensor:
    return functional.normalize(features_ND.double(), dim=-1)


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
