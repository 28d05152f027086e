"""Measures how long a checkpoint holds up training: written in the step, and beside the steps that follow it.

    python -m benchmarks.checkpoint [--parameters 90000000] [--rounds 3] [--folder FOLDER]

`held_up` is the time that training lost to one checkpoint of a student with its two moments: what taking the snapshot
takes, and by how much the steps (matrix products on one thread) that follow take longer until the file is whole. The
ratio is that to writing the same checkpoint in the step; `worst_step` is the longest step while it is written, over an
undisturbed one.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.commands import median, print_table
from stages.runs.checkpoint import save_checkpoint
from stages.runs.saver import CheckpointSaver

_TENSORS_OF_A_STATE = 300
_RUN = "a" * 64


def measure(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """Returns what one round gives: seconds in the step, seconds held up, and the longest step as a ratio."""
    matrix = torch.randn(600, 600)

    def step() -> float:
        start = time.perf_counter()
        for _ in range(20):
            matrix @ matrix
        return time.perf_counter() - start

    undisturbed = statistics.median(step() for _ in range(30))
    start = time.perf_counter()
    save_checkpoint(folder / "in-step", tensors, step=1, run=_RUN, state={}, keep=1)
    in_step_s = time.perf_counter() - start
    with CheckpointSaver(folder / "beside", run=_RUN, keep=1, fence=None) as saver:
        # The first snapshot touches new memory, the others do not.
        saver.save(tensors, step=1, state={})
        saver.wait()
        start = time.perf_counter()
        saver.save(tensors, step=2, state={})
        snapshot_s = time.perf_counter() - start
        during = []
        while not saver.is_done:
            during.append(step())
    held_up_s = snapshot_s + sum(during) - undisturbed * len(during)
    return {
        "in_step_s": in_step_s,
        "snapshot_s": snapshot_s,
        "held_up_s": held_up_s,
        "ratio": held_up_s / in_step_s,
        "worst_step": max(during, default=undisturbed) / undisturbed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=90_000_000, help="of the student; ViT-B/32 has 88 million")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else a temporary one")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    length = 3 * asked.parameters // _TENSORS_OF_A_STATE
    tensors = {f"tensor.{place}": torch.randn(length) for place in range(_TENSORS_OF_A_STATE)}
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        rounds = [measure(Path(temporary) / str(place), tensors) for place in range(asked.rounds)]
    result = {name: median([one[name] for one in rounds]) for name in rounds[0]}
    print_table([{"parameters": asked.parameters, **result}], ("parameters", *result))
    print(json.dumps({"parameters": asked.parameters, **result, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
