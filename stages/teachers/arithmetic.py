"""Kinds of arithmetic, and how far the same teacher may be from itself within one and between two.

A kind of arithmetic is a device, its instruction set and the version of the library that chooses the kernels. Within
one, features of float32 differ by the order of additions alone; between two, kernels differ too.
"""

import sys
from dataclasses import dataclass
from typing import Any

from stages.device import AUTO, this_machine

UNKNOWN = "its own"
"""Precision of a teacher that does not say what it computes in."""

LOOSEST_DISTANCE = 0.0447
"""Between unit features: a cosine of 0.999."""

_MAX_DISTANCE = {
    "float32": (1e-4, 1e-3),
    "float16": (3e-3, 1e-2),
    "bfloat16": (2.5e-2, LOOSEST_DISTANCE),
    UNKNOWN: (1e-3, LOOSEST_DISTANCE),
}
"""Precision -> largest distance between unit features (within one kind of arithmetic, between two).

Measured for the right teacher over the probes: float32, tiny dual encoders of every kind, batches of 1 to 64, 1 to 4
threads: 3.5e-7; ViT-B/32, batches of 1 and 16, 1 and 2 threads: 5.1e-7, between AVX-512, AVX2 and SSE: 1.1e-6, and its
float16 and bfloat16 are 1.6e-3 and 1.3e-2 from its float32. Noise of 2 % in one layer of twelve: 3.2e-3 or more.
"""


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic by which features were computed.

    Attributes:
        precision: the precision of the forward pass, or `UNKNOWN`.
        numerics: as `numerics_of` gives it.
    """

    precision: str
    numerics: str


def max_distance(ours: Arithmetic | None, theirs: Arithmetic | None) -> float:
    """Returns how far apart two unit features of one input by one teacher may be; None is an unknown arithmetic."""
    if ours is None or theirs is None or ours.precision != theirs.precision:
        return LOOSEST_DISTANCE
    within, between = _MAX_DISTANCE.get(ours.precision, _MAX_DISTANCE[UNKNOWN])
    return within if ours.numerics == theirs.numerics else between


def numerics_of(device: str) -> str:
    """Returns the kind of arithmetic of `device` in this process, once its teacher is loaded.

    For example "cpu AVX512 torch 2.15"; "cpu" alone for a teacher that does not use torch.
    """
    torch: Any = sys.modules.get("torch")
    device = this_machine().device(device) if device == AUTO else device
    if torch is None:
        return device
    version = "torch " + ".".join(torch.__version__.split(".")[:2])
    if device == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()} {version}"
    return f"cuda {torch.cuda.get_device_name(device)} {version}"


def may_share_an_array(ours: str, theirs: str) -> bool:
    """Returns whether parts of two kinds of arithmetic may stand in one array without anybody allowing it.

    They are the same, or one of them says less than the other: caches were once made that know only the device.
    """
    return ours == theirs or f"{ours} ".startswith(f"{theirs} ") or f"{theirs} ".startswith(f"{ours} ")
