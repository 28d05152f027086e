"""The exponential moving average of a student's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.students import Student


class AveragedWeights:
    """The moving average of all weights and statistics of `student`, which starts from those that it has now.

    The decay of step n, from 0, is min(`decay`, (1 + n) / (10 + n)), so that the random start is soon forgotten.

    **Source:** the schedule is that of `tf.train.ExponentialMovingAverage` with `num_updates`.
    """

    def __init__(self, student: Student, decay: float) -> None:
        self._student = student
        self._decay = decay
        self.tensors = {name: value.detach().clone() for name, value in student.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after `step`; counters are taken as they are."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        now = self._student.state_dict()
        moving = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.tensors[name] for name in moving], [now[name] for name in moving], share)
        for name in now.keys() - set(moving):
            self.tensors[name].copy_(now[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the student has the averaged weights."""
        own = {name: value.detach().clone() for name, value in self._student.state_dict().items()}
        self._student.load_state_dict(self.tensors)
        try:
            yield
        finally:
            self._student.load_state_dict(own)
