"""One optimizer step of one student: its gradient, from all processes, and what it does with it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from cache_schema.errors import DivergedError
from stages.device import float32_without_tf32
from stages.distill.batches import Batch
from stages.distill.config import ResolvedMethod
from stages.distill.gradient_cache import backward_of_batch
from stages.distill.group import Group
from stages.distill.job import DistillJob
from stages.distill.losses import TeacherSide, total_loss
from stages.distill.meter import phase
from stages.distill.optimizer import learning_rate_of_step

_SHOWN_KEYS = 5


def try_step(
    job: DistillJob,
    method: ResolvedMethod,
    batch: Batch,
    pixels_BHWC: Tensor,
    teacher: TeacherSide,
    *,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[Tensor], Tensor],
    passes: Sequence[Sequence[slice]],
    first_place: int,
    may_be_left_out: bool,
    group: Group,
) -> dict[str, float] | None:
    """Does one optimizer step and returns its metrics; None when it is not finite and may be left out.

    All processes of `group` do the same step with the same gradient.

    Args:
        job: of the student.
        method: of this step.
        batch: of this step.
        pixels_BHWC: uint8, of the rows of `passes` alone, on the student's device.
        teacher: what the teacher says of the whole batch.
        optimizer: of the student.
        forward: the student, perhaps compiled.
        passes, first_place: the share of this process, see `backward_of_batch`.
        may_be_left_out: whether a loss or gradient that is not finite is no error.
        group: the processes.

    Raises:
        DivergedError: a loss or gradient is not finite.
        RuntimeError, MemoryError: memory is short, in this process or another one. Statistics are spoilt.
    """
    student = job.student
    losses: dict[str, Tensor] = {}

    def loss_of_features(image_BD: Tensor) -> Tensor:
        total, parts = total_loss(
            image_BD,
            teacher,
            weights=method.weights,
            temperatures=method.temperatures,
            logit_scale=method.logit_scale,
        )
        losses.update({"loss": total.detach()}, **{name: part.detach() for name, part in parts.items()})
        return total

    optimizer.zero_grad(set_to_none=True)
    # Both passes lie inside: autograd looks at these settings again.
    with float32_without_tf32() if method.precision == "float32" else nullcontext():
        image_BD = backward_of_batch(
            student,
            pixels_BHWC,
            loss_of_features,
            passes=passes,
            randomness=(method.seed, batch.step),
            precision=method.precision,
            forward=forward,
            group=group,
            first_place=first_place,
        )
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    with phase("exchange"):
        group.sum(gradients)
    with phase("optimizer"):
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        is_finite = bool(torch.isfinite(losses["loss"]) and torch.isfinite(grad_norm))
    # Equal sums may have norms and losses that differ in their last bits, and so may what is finite.
    if group.agree(flag=not is_finite):
        if may_be_left_out:
            return None
        raise _diverged(job, batch, image_BD, losses["loss"], grad_norm)
    with phase("optimizer"), group.agreed():
        if method.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(student.parameters(), method.clip_grad, grad_norm)
        rate = rate_of(method, batch.step)
        for of_parameters in optimizer.param_groups:
            of_parameters["lr"] = rate
        optimizer.step()
    return {
        **{name: value.item() for name, value in losses.items()},
        "cosine": functional.cosine_similarity(image_BD, teacher.image_BD).mean().item(),
        "grad_norm": grad_norm.item(),
        "learning_rate": optimizer.param_groups[0]["lr"],
    }


def rate_of(method: ResolvedMethod, step: int) -> float:
    """Returns the learning rate of `step`, from 0."""
    return learning_rate_of_step(
        step,
        method.steps,
        peak=method.learning_rate,
        least=min(method.min_learning_rate, method.learning_rate),
        warmup_start=min(method.warmup_learning_rate, method.learning_rate),
        warmup_share=method.warmup_share,
    )


def _diverged(job: DistillJob, batch: Batch, image_BD: Tensor, loss: Tensor, grad_norm: Tensor) -> DivergedError:
    spoilt = (~torch.isfinite(image_BD).all(dim=1)).cpu().numpy()
    rows = batch.rows[spoilt] if spoilt.any() else batch.rows
    keys = ", ".join(repr(key) for key in job.feed.cache.keys("image", rows[:_SHOWN_KEYS]))
    return DivergedError(
        f"step {batch.step + 1:,} of {job.running.out.absolute()} has loss {loss.item():g} and gradient norm "
        f"{grad_norm.item():g} ({spoilt.sum():,} of {len(spoilt):,} student features are not finite; images "
        f"{keys}{' …' if len(rows) > _SHOWN_KEYS else ''}): the last checkpoint stays; go on from it with a lower "
        "--learning-rate and --amend REASON, or with --skip-nonfinite or --clip-grad beside it"
    )
