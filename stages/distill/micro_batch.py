"""How many images go through a student at once: chosen from the memory that is there, by a real pass.

Shape letters: B images of a batch, D width of a feature.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_schema.errors import EnvironmentProblem
from cache_schema.json_file import Json
from stages.device import is_out_of_memory
from stages.distill.gradient_cache import groups_of, passes_of, to_input
from stages.distill.group import Group
from stages.distill.job import DistillJob
from stages.distill.losses import bytes_of_scores
from stages.students import Student

__all__ = ["MicroBatch", "free_memory_bytes", "is_out_of_memory", "micro_batch_that_fits"]

_MEASURED_ROWS = (2, 4)
# What a pass holds beside the tensors that are saved for its backward pass: workspaces and gradients on their way.
_BESIDE_SAVED = 1.5
_SHARE_USED = 0.8
# AdamW's two moments and the gradient, in float32 like the parameter.
_OF_A_PARAMETER = 3

# Of version 2, and of version 1.
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


class MicroBatch:
    """The micro batch of one student: as it was asked for, else that of the last session, else what fits into memory.

    Args:
        job: of the student.
        last_session: of the run that goes on, or nothing.
        notice: called with a sentence about memory that is short.
        shares: rows of the batch that each process computes.
        group: the processes; all use the micro batch of the one with the least memory.

    Attributes:
        size: images that go through the student at once.
    """

    def __init__(
        self,
        job: DistillJob,
        last_session: Sequence[Mapping[str, Json]],
        notice: Callable[[str], None],
        *,
        shares: Sequence[slice],
        group: Group,
    ) -> None:
        self._job = job
        self._say = notice
        self._shares, self._rank = shares, group.rank
        method = job.method
        if job.running.micro_batch_size is not None:
            self.size = min(job.running.micro_batch_size, method.batch_size)
        elif last_session and "micro_batch_size" in last_session[0]:
            self.size = last_session[0]["micro_batch_size"]
        else:
            with group.agreed():
                fitting = micro_batch_that_fits(
                    job.student,
                    method.batch_size,
                    method.text_batch_size,
                    device=job.device,
                    precision=method.precision,
                    largest=max(share.stop - share.start for share in shares),
                    shared_by=group.num_here if job.device.type == "cpu" else 1,
                )
            self.size = min(group.collect(fitting))
            if self.size < max(share.stop - share.start for share in shares):
                notice(
                    f"{self.size:,} of {method.batch_size:,} images go through {job.student.specification} at once, as "
                    f"the memory of {job.device} allows"
                )

    def passes(self) -> list[list[slice]]:
        """Returns the forward passes of the share of this process, see `passes_of`."""
        return self._passes_of_all(self.size)[self._rank]

    @property
    def first_place(self) -> int:
        """Returns the place of the first group of this process among those of the batch."""
        if self._job.group_size is None:
            return 0
        groups = groups_of(self._job.method.batch_size, self._job.group_size)
        return [rows.start for rows in groups].index(self._shares[self._rank].start)

    def _passes_of_all(self, size: int) -> list[list[list[slice]]]:
        method = self._job.method
        return [passes_of(method.batch_size, size, self._job.group_size, share) for share in self._shares]

    def halve(self, error: Exception) -> None:
        """Halves the micro batch after `error`; raises `EnvironmentProblem` when it is the smallest."""
        method, device, group_size = self._job.method, self._job.device, self._job.group_size
        now, smaller = self._passes_of_all(self.size), max(1, self.size // 2)
        if self._passes_of_all(smaller) == now:
            groups = "" if group_size is None else f", a smaller --norm-batch-size than {group_size:,}"
            raise EnvironmentProblem(
                f"{device} has not enough memory for {now[0][0][0].stop:,} images in one forward pass and a loss over "
                f"{method.batch_size:,} images and {method.text_batch_size:,} sentences: use a smaller --batch-size or "
                f"--text-batch-size{groups}, with --fresh or another --out, or a device with more memory"
            ) from error
        if device.type == "cuda":
            torch.cuda.empty_cache()
        self._say(
            f"{device} has not enough memory for {self.size:,} images of {self._job.running.out} in one forward pass; "
            f"going on with {smaller:,}"
        )
        self.size = smaller


def micro_batch_that_fits(
    student: Student,
    batch_size: int,
    text_batch_size: int,
    *,
    device: torch.device,
    precision: str,
    largest: int | None = None,
    shared_by: int = 1,
) -> int:
    """Returns how many images of a batch fit into the free memory of `device` in a forward and backward pass.

    What a pass needs is measured on a few blank pictures; the student and torch's random state stay as they are. The
    passes of a batch get nearly the same size.

    Args:
        student: in training mode, on `device`.
        batch_size: images of a step, of which this is at most all and at least 1.
        text_batch_size: sentences of a step.
        device: where the student is.
        precision: of the student's pass, "float32" or "bfloat16".
        largest: images that it is asked to take at most; None for those of a step.
        shared_by: processes that ask for the same memory together.
    """
    try:
        least, most = (_bytes_of_pass(student, rows, device, precision) for rows in _MEASURED_ROWS)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 1
    per_row = max(1, (most - least) // (_MEASURED_ROWS[1] - _MEASURED_ROWS[0]))
    trained = sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad)
    scores = bytes_of_scores(batch_size, text_batch_size, student.description.dim)
    left = int(_SHARE_USED * free_memory_bytes(device)) // shared_by - _OF_A_PARAMETER * trained - scores
    largest = largest or batch_size
    fitting = min(largest, max(1, left // per_row))
    num_passes = -(-largest // fitting)
    return -(-largest // num_passes)


def free_memory_bytes(device: torch.device) -> int:
    """Returns the memory that this process may still take on `device`: of a GPU, or of the machine and its cgroup."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([_available_bytes(), *_left_in_cgroup(Path("/sys/fs/cgroup"))])


def _bytes_of_pass(student: Student, num_rows: int, device: torch.device, precision: str) -> int:
    """Returns the bytes that a forward pass over `num_rows` images holds until its backward pass, and works with."""
    blank_BHWC = torch.zeros(num_rows, *student.preprocess.size, 3, dtype=torch.uint8, device=device)
    pixels_BCHW = to_input(blank_BHWC, student.preprocess, student.memory_format)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*student.parameters(), *student.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with _as_it_was(student), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            student(pixels_BCHW).float().sum().backward()
            return torch.cuda.max_memory_allocated(device) - before
        with torch.autograd.graph.saved_tensors_hooks(keep, _same):
            held = student(pixels_BCHW)
        del held
    return int(_BESIDE_SAVED * sum(saved.values()))


@contextmanager
def _as_it_was(student: Student) -> Iterator[None]:
    """Context that leaves statistics, gradients and torch's random state as they were."""
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    gradients = [(parameter, parameter.grad) for parameter in student.parameters()]
    devices = [parameter.device for parameter in student.parameters() if parameter.device.type == "cuda"][:1]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for name, buffer in student.named_buffers():
                buffer.copy_(buffers[name])


def _available_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_in_cgroup(folder: Path) -> Iterator[int]:
    """Yields what the memory limit of this container leaves, where it has one."""
    for limit, used in _CGROUP_FILES:
        try:
            most = (folder / limit).read_text().strip()
            if most.isdecimal():
                yield max(0, int(most) - int((folder / used).read_text()) + _cache_bytes(folder / limit))
        except OSError:
            continue


def _cache_bytes(limit: Path) -> int:
    """Returns the bytes of files that the system may take back, which count as used."""
    statistics: dict[str, Any] = {}
    for line in (limit.parent / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        statistics[name] = int(value)
    return statistics.get("inactive_file", 0)


def _same(tensor: Tensor) -> Tensor:
    return tensor
