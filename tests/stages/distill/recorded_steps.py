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
        weights: after the step.
    """

    gradients: dict[str, Tensor]
    weights: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def recorded() -> Iterator[list[RecordedStep]]:
    """Yields a list that grows by one with every optimizer step in this process."""
    steps: list[RecordedStep] = []
    students: list[Student] = []

    def after_forward(module: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(module, Student):
            students[:] = [module]

    def before_step(*_: object) -> None:
        steps.append(RecordedStep({name: p.grad.detach().clone() for name, p in _parameters(students[0])}))

    def after_step(*_: object) -> None:
        steps[-1].weights = {name: p.detach().clone() for name, p in _parameters(students[0])}

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


def _parameters(student: Student) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yields the parameters with the names that they have in the tower itself."""
    return student.tower.named_parameters()
