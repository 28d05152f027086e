"""Measures losses by tiles against plain ones, and checks them where no plain one can be computed.

    python -m benchmarks.streamed_losses [--losses vl pvl udist] [--rows 2048 4096 8192] [--width 768] [--threads 1]
    python -m benchmarks.streamed_losses --rows 131072 --losses pvl --sampled 64

As many sentences as images, `--rows` of each, of random directions around a common one, and a student near its teacher.
`times` is the time of value and gradient over that of the plain loss, one after the other in one process; `peak_gb` and
`plain_gb` are by how much resident memory grows above what holds the features. With `--sampled`, no plain loss is
computed, and of pvl, whose images do not see each other, the gradient of so many is compared with one in float64 that
sees their scores alone (`gradient_error`, a share of its norm).
"""

import argparse
import json
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.commands import print_table
from stages.distill import losses, streamed_losses
from stages.distill.losses import LOSSES, LossInputs, Side, TeacherSide, full_precision

SCALES = {"vl": 100.0, "pvl": 100.0 / 3, "udist": 100.0 / 7}
"""Factors on cosines: the logit scale of CLIP over the temperature of each loss."""
COLUMNS = ("loss", "rows", "seconds", "times", "peak_gb", "plain_gb", "value_error", "gradient_error")


def features(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns student images, teacher images and sentences, float32."""
    draw = torch.Generator().manual_seed(0)
    shared_1D = 1.5 * torch.randn(1, width, generator=draw)
    teacher_ND, text_ND = (torch.randn(rows, width, generator=draw).add_(shared_1D) for _ in range(2))
    return torch.randn(rows, width, generator=draw).mul_(0.5).add_(teacher_ND), teacher_ND, text_ND


def timed(name: str, given: tuple[Tensor, Tensor, Tensor], above: int) -> tuple[float, float, float, Tensor]:
    """Returns value, seconds, gigabytes above what was there, and the gradient, of a loss streamed above a size."""
    student_ND, teacher_ND, text_ND = given
    losses.STREAMED_ABOVE = above
    leaf_ND = student_ND.detach().requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    start = time.perf_counter()
    with full_precision("cpu"):
        value = LOSSES[name](LossInputs(Side(leaf_ND), TeacherSide(teacher_ND, text_ND), SCALES[name]))
        value.backward()
    seconds = time.perf_counter() - start
    assert leaf_ND.grad is not None
    return value.item(), seconds, (_resident("VmHWM") - before) / 1e6, leaf_ND.grad


def sampled_error(given: tuple[Tensor, Tensor, Tensor], gradient_ND: Tensor, num_sampled: int) -> float:
    """Returns how far the gradients of pvl of some images are from float64 ones, as a share of those."""
    student_ND, teacher_ND, _ = given
    some = torch.randperm(len(student_ND), generator=torch.Generator().manual_seed(1))[:num_sampled]
    right_ND = torch.nn.functional.normalize(teacher_ND.double(), dim=1)
    leaf = student_ND[some].double().requires_grad_()
    unit, wanted = (torch.nn.functional.normalize(side, dim=1) for side in (leaf, teacher_ND[some].double()))
    log_q, log_p = (torch.log_softmax(SCALES["pvl"] * side @ right_ND.T, dim=1) for side in (unit, wanted))
    (2 * (log_p.exp() * (log_p - log_q)).sum() / len(student_ND)).backward()
    assert leaf.grad is not None
    return ((gradient_ND[some].double() - leaf.grad).norm() / leaf.grad.norm()).item()


def _resident(field: str) -> int:
    """Returns a field of this process's status, in kilobytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", choices=("vl", "pvl", "udist"), default=["vl", "pvl", "udist"])
    parser.add_argument("--rows", nargs="+", type=int, default=[2048, 4096, 8192])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sampled", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = []
    for rows in asked.rows:
        given = features(rows, asked.width)
        for name in asked.losses:
            value, seconds, peak_gb, gradient_ND = timed(name, given, above=0)
            row = {"loss": name, "rows": rows, "seconds": round(seconds, 2), "peak_gb": round(peak_gb, 3)}
            if asked.sampled and name == "pvl":
                row["gradient_error"] = sampled_error(given, gradient_ND, asked.sampled)
            if not asked.sampled:
                plain, plain_seconds, plain_gb, plain_ND = timed(name, given, above=rows * rows)
                row |= {
                    "times": round(seconds / plain_seconds, 2),
                    "plain_gb": round(plain_gb, 3),
                    "value_error": abs(value / plain - 1),
                    "gradient_error": ((gradient_ND - plain_ND).norm() / plain_ND.norm()).item(),
                }
            found.append(row)
    print_table(found, COLUMNS)
    tile = [streamed_losses.TILE_ROWS, streamed_losses.TILE_COLUMNS]
    print(json.dumps({"width": asked.width, "threads": asked.threads, "tile": tile, "sizes": found}, indent=1))


if __name__ == "__main__":
    main()
