"""Batches of the steps that come next, made while earlier ones are learnt from, and brought to the device.

One thread looks up rows and features and begins the pictures of a batch, another waits for its pictures and uploads
them: neither reads nor decodes, which the threads and processes of `Pictures` do, across the edges of batches. The
memory is that of the batches which are alive: the one that is learnt from, the next one, and those begun behind it, as
many as give every worker something to do and at least one.
"""

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.distill.batches import Batch, BatchMaker, BegunBatch
from stages.distill.losses import TeacherSide
from stages.images.preprocess import CropShape
from stages.prefetch import prefetched

_STAGED_BYTES = 32 << 20


@dataclass(frozen=True)
class UploadedBatch:
    """A batch whose tensors are on the device.

    Attributes:
        batch: without pixels where these were copied to another device.
        teacher: what the teacher says of it.
        pixels: uint8 BHWC by shape.
    """

    batch: Batch
    teacher: TeacherSide
    pixels: Mapping[CropShape, Tensor]

    def receive(self) -> None:
        """Tells the device that the current stream looks at the tensors, which were made on another one."""
        for tensor in (self.teacher.image_BD, self.teacher.text_TD, *self.pixels.values()):
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))


def batches_ahead(maker: BatchMaker, steps: Iterable[int], device: torch.device) -> Generator[UploadedBatch]:
    """Yields the batches of `steps` in order, on `device`; forget one before you ask for the next, or memory grows.

    An error of a batch is raised when the batch is due.
    """
    num_begun = max(1, -(-maker.pictures.num_begun // maker.sequence.batch_size))
    with closing(prefetched(map(maker.begin, steps), num_ahead=num_begun)) as begun:
        yield from prefetched(_uploaded(begun, device), num_ahead=1)


def _uploaded(begun: Iterable[BegunBatch], device: torch.device) -> Generator[UploadedBatch]:
    upload = _ToGpu(device) if device.type == "cuda" else _on_cpu
    for one in begun:
        uploaded = _timed(upload, one.result())
        # Whoever is given it is the only one who keeps it while the next one is waited for.
        del one
        yield uploaded
        del uploaded


def _timed(upload: Callable[[Batch], UploadedBatch], batch: Batch) -> UploadedBatch:
    start = time.perf_counter()
    uploaded = upload(batch)
    seconds = {**batch.seconds, "upload": time.perf_counter() - start}
    return replace(uploaded, batch=replace(uploaded.batch, seconds=seconds))


def _on_cpu(batch: Batch) -> UploadedBatch:
    teacher = TeacherSide(torch.from_numpy(batch.teacher_image_BD), torch.from_numpy(batch.text_TD))
    pixels = {shape: torch.from_numpy(pixels_BHWC) for shape, pixels_BHWC in batch.pixels.items()}
    return UploadedBatch(batch, teacher, pixels)


class _ToGpu:
    """Copies batches on a stream of its own, through two pinned buffers in turn, so that no step waits for a copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers = [torch.empty(_STAGED_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in self._buffers]

    def __call__(self, batch: Batch) -> UploadedBatch:
        with torch.cuda.stream(self._stream):
            teacher = TeacherSide(self._copy(batch.teacher_image_BD), self._copy(batch.text_TD))
            pixels_BP = self._copy(batch.pixels_BP)
        # In this thread, so that neither a step nor the memory of the pixels on this side has to wait.
        self._stream.synchronize()
        pixels, start = {}, 0
        for shape, pixels_BHWC in batch.pixels.items():
            end = start + pixels_BHWC[0].size
            pixels[shape] = pixels_BP[:, start:end].unflatten(1, pixels_BHWC.shape[1:])
            start = end
        without_pixels = replace(batch, pixels={}, pixels_BP=np.empty((0, 0), np.uint8))
        return UploadedBatch(without_pixels, teacher, pixels)

    def _copy(self, values: NDArray[Any]) -> Tensor:
        source = torch.from_numpy(values)
        flat = source.reshape(-1).view(torch.uint8)
        target = torch.empty(len(flat), dtype=torch.uint8, device=self._device)
        turns = zip(flat.split(_STAGED_BYTES), target.split(_STAGED_BYTES), cycle((0, 1)), strict=False)
        for some, there, turn in turns:
            buffer, copied = self._buffers[turn][: len(some)], self._copied[turn]
            copied.synchronize()
            buffer.copy_(some)
            there.copy_(buffer, non_blocking=True)
            copied.record()
        return target.view(source.dtype).view(source.shape)
