"""What this process may compute with, and from the name of a device to the device, or to a message that lists those.

`this_machine` is the only place that looks; whoever decides by what it finds takes a `Machine`, which may be another.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache_schema.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    import torch


AUTO = "auto"
"""The first GPU where there is one, else the CPU."""


@dataclass(frozen=True)
class Machine:
    """What a process may compute with.

    Attributes:
        gpus: names of the GPUs that torch can use, that of cuda:0 first.
        num_cores: CPU cores that the process may use.
        num_shown: GPUs that the system shows to the process, whether torch can use them or not.
        num_there: GPUs of the machine, also those that are hidden from the process.
    """

    gpus: tuple[str, ...] = ()
    num_cores: int = 1
    num_shown: int = 0
    num_there: int = 0

    def device(self, name: str) -> str:
        """Returns the device that `name` stands for: "auto" is decided, all others stay as they are."""
        if name != AUTO:
            return name
        return "cuda" if self.gpus else "cpu"

    def num_decoders(self, device: str) -> int:
        """Returns how many processes decode for a model on `device`.

        A GPU leaves the cores to them, and gets its share where others of the machine are hidden: they have a process
        each. On the CPU the model needs the cores itself.
        """
        if device == "cpu":
            return 1
        share = self.num_shown / self.num_there if 0 < self.num_shown < self.num_there else 1
        return max(1, int(self.num_cores * share))


def this_machine() -> Machine:
    """Returns what this process may compute with. Imports torch only where the system shows a GPU."""
    names: tuple[str, ...] = ()
    num_shown = num_gpus_here()
    if num_shown:
        import torch

        if torch.cuda.is_available():
            names = tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return Machine(names, num_cores(), num_shown, num_gpus_here(environment={}))


def chosen_device(name: str, doing: str, say: Callable[[str], None], machine: Machine | None = None) -> str:
    """Returns the device that `name` stands for, and says what was chosen where there was a choice.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".
        doing: what is done there, such as "the student trains".
        say: called with a sentence where "auto" met a GPU.
        machine: what there is; None looks.
    """
    if name != AUTO:
        return name
    machine = machine or this_machine()
    if machine.gpus:
        say(f"{doing} on cuda:0 ({machine.gpus[0]})")
    elif machine.num_shown:
        say(
            f"{doing} on the CPU, because torch can use none of the {machine.num_shown} GPUs of this machine: install "
            "a driver and a build of torch that go with them, or say --device cpu"
        )
    return machine.device(name)


def num_decoders(asked: int | None, device: str) -> int:
    """Returns how many processes decode for a model on `device`, where `asked` leaves it to this machine."""
    if asked is not None:
        return asked
    return 1 if device == "cpu" else this_machine().num_decoders(this_machine().device(device))


def num_gpus_here(devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ) -> int:
    """Returns how many NVIDIA GPUs this process may use: those in `devices` that CUDA_VISIBLE_DEVICES does not hide."""
    there = sum(1 for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia[0-9]+", path.name))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    # As CUDA does: the first one that does not exist ends the list.
    named = [name.strip() for name in visible.split(",")]
    wrong = next((at for at, name in enumerate(named) if name in ("", "-1")), len(named))
    return min(there, wrong)


def num_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns how many cores this process may use: those it is bound to, or less where its container has a quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *(int(quota) for quota in _quotas(cgroup))]))


def _quotas(cgroup: Path) -> Iterator[float]:
    """Yields the cores' worth of time that a container gets, of version 2 and of version 1 of cgroups."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def free_gpu_bytes() -> int:
    """Returns the free memory of the first GPU; 0 where torch can use none."""
    if not this_machine().gpus:
        return 0
    import torch

    return int(torch.cuda.mem_get_info(0)[0])


def torch_device(name: str) -> "torch.device":
    """Returns the torch device called `name`: "auto", "cpu", "cuda" or "cuda:N". Only "auto" leaves a choice.

    Raises:
        UsageError: `name` is not the name of a device.
        EnvironmentProblem: this machine has no such device; lists those it has.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    import torch

    name = this_machine().device(name) if name == AUTO else name
    if name != "cpu":
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= num_gpus:
            there = ["cpu", *(f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in range(num_gpus))]
            raise EnvironmentProblem(
                f"device {name!r} is not there; this machine has: {', '.join(there)} (torch {torch.__version__}): "
                "name one of these, or install a driver and a torch build for the device"
            )
    return torch.device(name)


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether `error`, of Python or torch, says that memory is short on the device or on this machine."""
    import torch

    # On the CPU torch has no class of its own for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def float32_without_tf32() -> Iterator[None]:
    """Computes float32 convolutions and matrix products inside in float32, however fast the device is at less.

    Unlike `full_float32` it leaves cuDNN the choice of its algorithms, which training needs for its speed.
    """
    import torch

    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Computes what is inside in the float32 that was asked for, on every device, and the same way each time."""
    # cuDNN would otherwise compute float32 convolutions (the patch embedding) in TF32 on recent GPUs.
    import torch

    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
