"""Saves checkpoints beside training: a snapshot is taken at once, and written by a thread while steps go on."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from cache_schema import atomic
from cache_schema.json_file import Json
from stages.runs.checkpoint import require_finite, save_checkpoint


class CheckpointSaver:
    """Writes the checkpoints of one run, one after the other. Its context ends when the last is written.

    A snapshot is a copy on the CPU, so memory holds the state of training twice from the first checkpoint on.

    Args:
        folder: the folder of the run's checkpoints.
        run: fingerprint of the run's configuration.
        keep: newest checkpoints that stay.
        fence: the fence of the run's lock.
    """

    def __init__(self, folder: Path, *, run: str, keep: int, fence: atomic.Fence | None) -> None:
        self._folder = folder
        self._run = run
        self._keep = keep
        self._fence = fence
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._snapshot: dict[str, torch.Tensor] = {}

    def save(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        step: int,
        state: Mapping[str, Json],
        also: frozenset[int] = frozenset(),
        then: Callable[[], None] | None = None,
    ) -> None:
        """Begins to write a checkpoint after `step` steps, once the one before it is written.

        Args:
            tensors: by name; they may change as soon as this returns.
            step: steps done.
            state: further JSON.
            also: steps whose checkpoints stay beside the newest.
            then: called in the thread when the checkpoint is whole.

        Raises:
            DivergedError: a value is not finite; nothing is written.
            PipelineError: the checkpoint before this one could not be written.
        """
        self.wait()
        require_finite(tensors, f"the training state after step {step:,} of {self._folder}")
        self._take(tensors)
        self._under_way = self._thread.submit(self._write, step, dict(state), also, then)

    def wait(self) -> None:
        """Waits for the checkpoint under way; raises what its writing raised."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    @property
    def is_done(self) -> bool:
        """Returns whether no checkpoint is under way."""
        return self._under_way is None or self._under_way.done()

    def require_well(self) -> None:
        """Raises what ended the writing of a checkpoint, without waiting for one under way."""
        if self.is_done:
            self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The lock of the run is given back next, so nothing may be left that writes under it.
        self._thread.shutdown()

    def _take(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies `tensors` into memory that the next snapshot uses again: touching new memory takes longer."""
        for name, tensor in tensors.items():
            if name not in self._snapshot:
                on_gpu = tensor.device.type == "cuda"
                self._snapshot[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
            self._snapshot[name].copy_(tensor.detach())

    def _write(
        self,
        step: int,
        state: Mapping[str, Json],
        also: frozenset[int],
        then: Callable[[], None] | None,
    ) -> None:
        save_checkpoint(
            self._folder,
            self._snapshot,
            step=step,
            run=self._run,
            state=state,
            keep=self._keep,
            also=also,
            fence=self._fence,
        )
        if then is not None:
            then()
