"""float32 means float32: the arithmetic that was asked for holds in both passes of a step, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from stages.distill.run import distill
from stages.students import Student
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import small_cache


@pytest.mark.parametrize(("precision", "kept"), [("float32", False), ("bfloat16", True)])
def test_a_step_in_float32_uses_no_tf32_in_convolutions_and_products_in_either_pass(
    tmp_path: Path, precision: str, kept: bool
) -> None:
    seen: list[tuple[bool, str]] = []

    def settings(*_: Any) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))

    def look(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if isinstance(module, Student) and module.training and torch.is_grad_enabled():
            settings()
            output.register_hook(settings)

    cache = small_cache(tmp_path / "corpus")
    config = distill_config(cache.path, tmp_path / "run", steps=1, batch_size=8, precision=precision)
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    handle = register_module_forward_hook(look)
    try:
        distill(config)
        after = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    finally:
        handle.remove()
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])
    # Passes that measure memory come first; the last two are those of the step.
    assert len(seen) >= 2 and seen[-2:] == [(kept, "high" if kept else "highest")] * 2
    assert after == (True, "high")
