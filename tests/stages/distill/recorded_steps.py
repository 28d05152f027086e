"""What torch itself sees of a run of `distill`: through its own hooks, so that no line of ours is replaced."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stages.distill.config import DistillConfig
from stages.distill.run import TrainingStopped, distill
from stages.students import Student


@dataclass
class RecordedStep:
    """One optimizer step of the student.

    Attributes:
        gradients: of every parameter, as the optimizer got them.
        state: weights and statistics after the step.
        dtype: of the features that the student's tower gave.
        training: whether the student was in training mode.
    """

    gradients: dict[str, Tensor]
    dtype: torch.dtype
    training: bool
    state: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def recorded() -> Iterator[list[RecordedStep]]:
    """Yields a list that grows by one with every optimizer step in this process."""
    steps: list[RecordedStep] = []
    last: dict[str, object] = {}

    def after_forward(module: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(module, Student):
            last.update(student=module, dtype=output.dtype, training=module.training)

    def before_step(*_: object) -> None:
        gradients = {_plain(name): p.grad.detach().clone() for name, p in last["student"].named_parameters()}
        steps.append(RecordedStep(gradients, last["dtype"], last["training"]))

    def after_step(*_: object) -> None:
        steps[-1].state = {_plain(name): value.clone() for name, value in last["student"].state_dict().items()}

    handles = [
        register_module_forward_hook(after_forward),
        register_optimizer_step_pre_hook(before_step),
        register_optimizer_step_post_hook(after_step),
    ]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def first_steps(config: DistillConfig, num_steps: int) -> list[RecordedStep]:
    """Runs `distill` and returns its first steps; a longer run is stopped after them, as a person would stop it."""
    with recorded() as steps:
        try:
            distill(config, should_stop=_after(num_steps))
        except TrainingStopped:
            assert config.steps is None or config.steps > num_steps
    assert len(steps) == num_steps, "every step of the run is an optimizer step"
    return steps


def _after(num_steps: int) -> Callable[[], bool]:
    asked = iter([False] * num_steps)
    return lambda: next(asked, True)


def _plain(name: str) -> str:
    return name.removeprefix("tower.")
