"""The gradient of a loss over a whole batch, computed with the memory of a small one.

These losses compare every image of a batch with every other, so the sum of the losses of small batches is another loss.
Instead the features of the whole batch are computed first, without a graph; the loss gives its gradient with respect to
them; then each micro batch is computed again, with a graph, and sends its share of that gradient back.

Shape letters: B images of a batch, D width of a feature, H and W pixels, C colours.

**Source:** Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983).
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stages.distill.group import ALONE, Group
from stages.distill.losses import full_precision
from stages.distill.meter import phase
from stages.distill.statistics import SharedStatistics
from stages.images.preprocess import Preprocess
from stages.students import Student

LossOfFeatures = Callable[[Tensor], Tensor]
"""From image_BD, float32 and needing a gradient, to a scalar."""


def groups_of(num_rows: int, group_size: int) -> list[slice]:
    """Returns the groups of rows of a batch that share batch statistics or a random draw.

    They have nearly the size `group_size`, and never one row where there are more.
    """
    return nearly_equal(num_rows, max(1, min(-(-num_rows // group_size), num_rows // 2)))


def passes_of(
    num_rows: int, micro_batch_size: int, group_size: int | None, share: slice | None = None
) -> list[list[slice]]:
    """Returns the forward passes of a batch, each a list of the groups of rows that go through the student together.

    Args:
        num_rows: images of the batch.
        micro_batch_size: images of a pass, as near as whole groups allow.
        group_size: images that share batch statistics or a random draw, see `groups_of`. None for students without
            either: then a pass is one group.
        share: the rows of this process, whole groups; None for all.
    """
    share = share or slice(0, num_rows)
    if group_size is None:
        length = _length(share)
        parts = nearly_equal(length, -(-length // micro_batch_size))
        return [[slice(share.start + rows.start, share.start + rows.stop)] for rows in parts]
    groups = [group for group in groups_of(num_rows, group_size) if share.start <= group.start < share.stop]
    num_passes = -(-len(groups) // max(1, micro_batch_size // _length(groups[0])))
    return [groups[some] for some in nearly_equal(len(groups), num_passes)]


def backward_of_batch(
    student: Student,
    pixels_BHWC: Tensor,
    loss_of_features: LossOfFeatures,
    *,
    passes: Sequence[Sequence[slice]],
    randomness: tuple[int, int],
    precision: str,
    forward: Callable[[Tensor], Tensor] | None = None,
    group: Group = ALONE,
    first_place: int = 0,
) -> Tensor:
    """Adds the gradient of the loss over the whole batch to the student's parameters; returns its features.

    Where several processes have a share of the batch each, this is the part of the gradient that goes through the
    images of this one: the sum over all processes is that of the batch.

    In several passes the gradient is the same as in one, up to rounding: batch norms and random draws see the same
    groups, dropout and stochastic depth draw the same in both passes, and running statistics move once per group.

    Args:
        student: in training mode.
        pixels_BHWC: uint8, on the student's device; of the rows of `passes` alone.
        loss_of_features: the loss, from all features at once.
        passes: as `passes_of` gives them.
        randomness: seed and step, from which dropout draws.
        precision: the precision of the student's pass, "float32" or "bfloat16".
        forward: the student, compiled; None for the student as it is.
        group: the processes that the batch is shared by.
        first_place: place of the first of these groups among those of the whole batch.

    Returns:
        image_BD of the whole batch, float32, detached.

    Raises:
        Exception: in every process where one of them has not enough memory, see `Group.agreed`.
    """
    slices = [rows for of_pass in passes for rows in of_pass]
    place_of = {rows.start: first_place + place for place, rows in enumerate(slices)}
    run = student if forward is None else forward
    statistics = SharedStatistics(student, group)

    def features_of(rows: slice) -> Tensor:
        place = place_of[rows.start]
        # Dropout draws from torch's global generator; this makes the draw a function of seed, step and place.
        torch.manual_seed(_seed_of(*randomness, place))
        with phase("forward"), statistics.of_place(place):
            here = slice(rows.start - slices[0].start, rows.stop - slices[0].start)
            pixels_BCHW = to_input(pixels_BHWC[here], student.preprocess, student.memory_format)
            with torch.autocast(pixels_BCHW.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                return run(pixels_BCHW)

    with group.agreed():
        before = {name: buffer.clone() for name, buffer in student.named_buffers()}
        with torch.set_grad_enabled(len(passes) == 1):
            first_pass = [features_of(rows) for rows in slices]
        first_pass_BD = _joined(first_pass)
    with phase("exchange"):
        features_BD = group.gather(first_pass_BD)
    with group.agreed():
        features_BD, gradient_BD = _gradient_of_features(features_BD, loss_of_features)
        if len(passes) == 1:
            _backward(first_pass, slices, gradient_BD)
        else:
            with torch.no_grad():
                for name, buffer in student.named_buffers():
                    buffer.copy_(before[name])
            for of_pass in passes:
                _backward([features_of(rows) for rows in of_pass], of_pass, gradient_BD)
    statistics.settle()
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


def _joined(features: Sequence[Tensor]) -> Tensor:
    return features[0].detach() if len(features) == 1 else torch.cat([some.detach() for some in features])


def _backward(with_graph: Sequence[Tensor], groups: Sequence[slice], gradient_BD: Tensor) -> None:
    with phase("backward"):
        torch.autograd.backward(
            with_graph, [gradient_BD[group].to(some.dtype) for some, group in zip(with_graph, groups, strict=True)]
        )


def nearly_equal(num_rows: int, num_slices: int) -> list[slice]:
    """Returns `num_slices` slices of `num_rows` rows that differ by at most one row, the longer ones first."""
    length, longer = divmod(num_rows, num_slices)
    ends = [place * length + min(place, longer) for place in range(num_slices + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _length(rows: slice) -> int:
    return rows.stop - rows.start


def _gradient_of_features(features_BD: Tensor, loss_of_features: LossOfFeatures) -> tuple[Tensor, Tensor]:
    leaf_BD = features_BD.float().requires_grad_()
    with phase("loss"), full_precision(leaf_BD.device.type):
        loss_of_features(leaf_BD).backward()
    assert leaf_BD.grad is not None
    return leaf_BD.detach(), leaf_BD.grad


def _seed_of(seed: int, step: int, place: int) -> int:
    digest = hashlib.blake2b(f"dropout {seed} {step} {place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
