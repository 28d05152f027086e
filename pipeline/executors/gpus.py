"""Counts the GPUs of this machine without importing anything that could use one."""

import os
import re
from collections.abc import Mapping
from pathlib import Path


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


def idle_gpus(device: str, num_gpus: int) -> str:
    """Returns the remark that one worker on `device` leaves GPUs idle and how to use them, or "" when it does not."""
    num_idle = num_gpus - (device != "cpu")
    if num_idle <= 0:
        return ""
    gpus = f"{num_idle} GPU{'s' if num_idle > 1 else ''} of this machine"
    if num_gpus == 1:
        return f"{gpus} will be idle: --device cuda computes there"
    return f"{gpus} will be idle: --executor ray --device cuda computes on all {num_gpus}"
