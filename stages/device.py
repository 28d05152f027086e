"""From the name of a device to the device, or to a message that lists what this machine has."""

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cache_schema.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    import torch


def torch_device(name: str) -> "torch.device":
    """Returns the torch device called `name`: "cpu", "cuda" or "cuda:N". Never another one than the one asked for.

    Raises:
        UsageError: `name` is not the name of a device.
        EnvironmentProblem: this machine has no such device; lists those it has.
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"unknown device {name!r}: use cpu, cuda or cuda:N")
    import torch

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
