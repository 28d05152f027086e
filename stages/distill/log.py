"""Logs every step of a run: metrics, which depend on the run alone, and speed, which does not."""

import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from cache_schema import atomic
from cache_schema.json_file import canonical_json
from stages.runs.folder import RunFolder


class TrainingLog:
    """Appends to metrics.jsonl, speed.jsonl and TensorBoard; first cuts them back to the steps that are done.

    Args:
        folder: the folder of the run.
        first_step: steps done; a run that went on after its last checkpoint repeats those steps now.
    """

    def __init__(self, folder: RunFolder, *, first_step: int) -> None:
        # TensorBoard takes a second to import.
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self.num_lost_lines = max(0, first_step - _num_lines(folder))
        atomic.keep_lines(folder.metrics, first_step - self.num_lost_lines)
        atomic.keep_lines(folder.speed, first_step - self.num_lost_lines)
        if folder.held_out.exists():
            atomic.keep_lines(folder.held_out, _num_measured(folder, first_step))
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1 if first_step else None)
        self._clock = time.perf_counter()

    def write(self, step: int, metrics: Mapping[str, float], *, num_images: int, phases: Mapping[str, float]) -> float:
        """Writes the lines of a step and returns its images per second.

        Args:
            step: steps done, from 1.
            metrics: finite numbers.
            num_images: images of the step.
            phases: seconds by phase of the step; `wait` is what it waited for its batch.
        """
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        speed = {"images_per_s": num_images / seconds, "seconds": seconds, "waited_seconds": phases.get("wait", 0.0)}
        atomic.append_line(self._folder.metrics, canonical_json({"step": step, **metrics}).decode())
        atomic.append_line(self._folder.speed, canonical_json({"step": step, **speed, "phases": phases}).decode())
        for name, value in {**metrics, **speed, **{f"seconds/{name}": value for name, value in phases.items()}}.items():
            self._board.add_scalar(name, value, step)
        return speed["images_per_s"]

    def write_held_out(self, step: int, measures: Mapping[str, float]) -> None:
        """Writes what was measured after `step` steps on pictures that are never trained on."""
        atomic.append_line(self._folder.held_out, canonical_json({"step": step, **measures}).decode())
        for name, value in measures.items():
            self._board.add_scalar(f"held_out/{name}", value, step)
        # The next step did not take the time of it.
        self._clock = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.close()


def _num_measured(folder: RunFolder, last_step: int) -> int:
    """Returns how many lines of held_out.jsonl are of `last_step` or an earlier one."""
    steps = [json.loads(line)["step"] for line in folder.held_out.read_bytes().splitlines() if line.endswith(b"}")]
    return sum(step <= last_step for step in steps)


def _num_lines(folder: RunFolder) -> int:
    return folder.metrics.read_bytes().count(b"\n") if folder.metrics.exists() else 0
