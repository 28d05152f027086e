"""The ordinary configuration of a run of distillation in tests, and a stop in the middle of one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.distill.config import DistillConfig

STUDENT = "timm:resnet10t?image_size=32"


def distill_config(cache: Path, out: Path, **fields: Any) -> DistillConfig:
    """Returns a configuration for tests: a small student on one thread; `fields` are others of it, or other values."""
    usual = {"student": STUDENT, "num_threads": 1, "decode_workers": 1}
    return DistillConfig(cache=cache, out=out, **{**usual, **fields})


def stop_after(num_steps: int) -> Callable[[], bool]:
    """Returns a `should_stop` that says yes when asked before the step after `num_steps`."""
    asked = iter([False] * num_steps + [True])
    return lambda: next(asked)
