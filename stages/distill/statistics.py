"""Running statistics of batch norms, where the groups that move them are computed by several processes.

They move once per group, in the order of the batch. A process knows only its own groups; so each group moves statistics
that start from zero, which leaves what it adds, and all processes then move the real ones by all groups in order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cache_schema.errors import EnvironmentProblem
from stages.distill.group import Group
from stages.students import Student

_SHOWN = 5


class SharedStatistics:
    """The running statistics of `student` during one step that `group` takes together.

    Args:
        student: in training mode, with the statistics before the step.
        group: one process moves its statistics as torch does, and nothing is done here.
    """

    def __init__(self, student: Student, group: Group) -> None:
        self._student, self._group = student, group
        self._before: dict[str, Tensor] = {}
        self._norms: list[_BatchNorm] = []
        self._counts: list[int] = []
        self._added: dict[int, Tensor] = {}
        self._not_once: set[str] = set()
        if group.size > 1:
            self._before = {name: buffer.clone() for name, buffer in student.named_buffers()}
            modules = [module for module in student.modules() if isinstance(module, _BatchNorm)]
            self._norms = [norm for norm in modules if norm.training and norm.running_mean is not None]
            self._counts = [int(_count_of(norm)) for norm in self._norms]

    @contextmanager
    def of_place(self, place: int) -> Iterator[None]:
        """Context in which the group at `place` of the batch, from 0, goes through the student."""
        real = [_moving_of(norm) for norm in self._norms]
        for norm, (mean, variance), count in zip(self._norms, real, self._counts, strict=True):
            # Others of their own: autograd refuses graphs whose statistics were changed since.
            norm.running_mean, norm.running_var = torch.zeros_like(mean), torch.zeros_like(variance)
            # Without a momentum, it decides how much a group counts.
            _count_of(norm).fill_(count + place)
        try:
            yield
            if self._norms:
                self._added[place] = torch.cat([moving for norm in self._norms for moving in _moving_of(norm)])
        finally:
            for norm, (mean, variance), count in zip(self._norms, real, self._counts, strict=True):
                norm.running_mean, norm.running_var = mean, variance
                if int(_count_of(norm)) != count + place + 1:
                    self._not_once.add(type(norm).__name__)

    def settle(self) -> None:
        """Moves the statistics of all processes by the groups of all, in their order.

        Raises:
            EnvironmentProblem: the student has other buffers that move, which nobody can put together again.
        """
        if self._group.size == 1:
            return
        self._require_known_buffers()
        if not self._norms:
            return
        mine = torch.stack([added for _, added in sorted(self._added.items())])
        of_all = self._group.gather(mine)
        with torch.no_grad():
            moving = [some for norm in self._norms for some in _moving_of(norm)]
            ends = [0]
            for some in moving:
                ends.append(ends[-1] + len(some))
            for place, added in enumerate(of_all):
                shares = [_share_of(norm, count + place) for norm, count in zip(self._norms, self._counts, strict=True)]
                shares = [share for share in shares for _ in range(2)]
                for some, share, (start, end) in zip(moving, shares, pairwise(ends), strict=True):
                    some.mul_(1 - share).add_(added[start:end])
            for norm, count in zip(self._norms, self._counts, strict=True):
                _count_of(norm).fill_(count + len(of_all))

    def _require_known_buffers(self) -> None:
        known = {id(buffer) for norm in self._norms for buffer in norm.buffers(recurse=False)}
        others = [
            name
            for name, buffer in self._student.named_buffers()
            if id(buffer) not in known and not torch.equal(buffer, self._before[name])
        ]
        others += [f"those of a {name} that is used more than once" for name in sorted(self._not_once)]
        if others:
            raise EnvironmentProblem(
                f"{self._student.specification} has {len(others)} buffers that move while it learns and are no batch "
                f"statistics ({', '.join(others[:_SHOWN])}), so that several processes cannot put them together: train "
                "it with one process"
            )


def _moving_of(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def _count_of(norm: _BatchNorm) -> Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked


def _share_of(norm: _BatchNorm, count: int) -> float:
    """Returns how much the next group counts after `count` others. **Source:** `torch.nn.BatchNorm2d.forward`."""
    return 1 / (count + 1) if norm.momentum is None else norm.momentum
