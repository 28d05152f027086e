"""A student compiled by torch, or as it is where torch cannot."""

from collections.abc import Callable

import torch
from torch import Tensor

from stages.distill.gradient_cache import to_input
from stages.students import Student

_SHOWN = 200


def compiled_or_not(
    student: Student, device: torch.device, notice: Callable[[str], None]
) -> Callable[[Tensor], Tensor]:
    """Returns `student` compiled for pictures of its size, or itself with a notice where it cannot be compiled.

    Args:
        student: in training mode, on `device`.
        device: where the student is.
        notice: called with the reason.
    """
    blank_BHWC = torch.zeros(2, *student.preprocess.size, 3, dtype=torch.uint8, device=device)
    pixels_BCHW = to_input(blank_BHWC, student.preprocess, student.memory_format)
    compiled = torch.compile(student)
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            compiled(pixels_BCHW).sum().backward()
    # What torch raises where a compiler is missing, or a student does what it cannot trace.
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:_SHOWN]
        notice(f"{student.specification} cannot be compiled and trains as it is ({reason})")
        torch._dynamo.reset()
        return student
    finally:
        student.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in student.named_buffers():
                buffer.copy_(buffers[name])
    return compiled
