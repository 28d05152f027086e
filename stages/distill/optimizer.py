"""The learning rate of every step, and which parameters decay."""

import math
from typing import Any

import torch

from stages.students import Student

# Source: the defaults of torch.optim.AdamW, which the published training code uses.
ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


def learning_rate_of_step(
    step: int, num_steps: int, *, peak: float, least: float, warmup_start: float, warmup_share: float
) -> float:
    """Returns the learning rate of `step` (from 0) of `num_steps`: a linear warm-up, then half a cosine.

    The warm-up takes `warmup_share` of the steps from `warmup_start` towards `peak`; the first step after it has
    `peak`, the last step of all has `least`.
    """
    num_warmup = min(round(warmup_share * num_steps), num_steps - 1)
    if step < num_warmup:
        return warmup_start + (peak - warmup_start) * step / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - 1 - num_warmup)
    return least + (peak - least) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(student: Student, *, weight_decay: float) -> torch.optim.AdamW:
    """Returns AdamW over the student; biases, norms and positional tables do not decay.

    The learning rate is set before every step; see `learning_rate_of_step`.
    """
    exempt = student.no_weight_decay()
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in student.named_parameters() if name not in exempt], "weight_decay": weight_decay},
        {"params": [p for name, p in student.named_parameters() if name in exempt], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=ADAM_BETAS, eps=ADAM_EPS, fused=True)
