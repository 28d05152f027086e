"""What a configuration leaves open, decided once for a teacher in a cache: its precision, and the rows of a batch.

The precision is part of the recipe. The rows of a batch change no feature by more than rounding: they are kept beside
the recipe, for each kind of GPU, so that a run that goes on has the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError
from cache_schema.json_file import Json, read_json
from cache_schema.layout import Layout, Modality
from stages.device import AUTO, Machine, chosen_device, this_machine
from stages.extract.config import BATCH_ON_CPU
from stages.teachers import PRECISIONS, Teacher, takes
from stages.teachers.batches import padded_pixels, padded_texts
from stages.teachers.probe_inputs import PROBE_TEXTS

LARGEST_BATCH = 512
"""Rows: a larger batch costs memory of the machine, for its pixels in float32, and keeps no GPU busier."""

_SHARE_USED = 0.8


def _ignore(sentence: str) -> None:
    """Stands for a `notice` that nobody gave."""


@dataclass(frozen=True)
class Surroundings:
    """What is around a job: who does the work, on which machine, and who is told.

    Attributes:
        elsewhere: other processes do the work, perhaps on other machines: this one may have no GPU.
        gpu_share: of a GPU, that one worker gets.
        machine: what this process may compute with; None looks when it matters.
        notice: called with a sentence about what was chosen.
    """

    elsewhere: bool = False
    gpu_share: float = 1.0
    machine: Machine | None = None
    notice: Callable[[str], None] = _ignore


ALONE = Surroundings()
"""This process does the work, and nobody is told."""


@dataclass(frozen=True)
class Place:
    """Where a teacher computes.

    Attributes:
        device: of the workers.
        here: where this process may compute with it too.
        gpu: name of the GPU `here`; empty on the CPU.
    """

    device: str
    here: str
    gpu: str = ""


NO_PLACE = Place("cpu", "cpu")
"""Of a teacher that need not be loaded."""


def place_of(specification: str, device: str, around: Surroundings) -> Place:
    """Returns where a teacher computes that is asked to do so on `device`; "auto" is decided.

    A factory of the user's own that takes no device is left where it is, which counts as the CPU.

    Args:
        specification: the specification of the teacher.
        device: "auto", "cpu", "cuda" or "cuda:N".
        around: what is around the job.
    """
    if device == "cpu":
        return Place("cpu", "cpu")
    machine = around.machine or this_machine()
    if device == AUTO and machine.gpus and not takes(specification, "device"):
        device = "cpu"
    device = chosen_device(device, "the teacher computes", around.notice, machine)
    here = machine.device(AUTO) if around.elsewhere and device != "cpu" else device
    number = int(here.partition(":")[2] or 0)
    on_gpu = here != "cpu" and number < len(machine.gpus)
    return Place(device, here, machine.gpus[number] if on_gpu else "")


def kept_precision(
    cache: Cache, *, specification: str | None = None, identity: Mapping[str, Json] | None = None
) -> str | None:
    """Returns the precision of the arrays that a teacher has in `cache`, the most exact of several; None for a new one.

    Args:
        cache: as it is.
        specification: of the teacher; None looks by its identity.
        identity: of the teacher.
    """
    recipes = [cache.array(modality, name).recipe for modality in cache.modalities for name in cache.arrays(modality)]
    found = {r.precision for r in recipes if r.specification == specification or dict(r.teacher) == identity}
    return next((precision for precision in PRECISIONS if precision in found), None)


def batch_size_for(
    arrays: Mapping[Modality, str],
    layout: Layout,
    place: Place,
    teacher: Callable[[], Teacher],
    *,
    most: int,
    around: Surroundings,
    fence: atomic.Fence,
) -> int:
    """Returns the rows of a batch for `arrays`, where nobody asked for a number of them.

    On a GPU it is what was kept for its kind, else what a real pass over a few rows shows to fit into its memory.

    Args:
        arrays: modality -> name of the array of view 0; their recipes are on disk.
        layout: of the cache.
        place: where the teacher computes.
        teacher: gives it, loaded on `place.here`.
        most: rows that may be wanted.
        around: what is around the job.
        fence: the fence of the cache's lock.
    """
    if place.device == "cpu":
        return min(BATCH_ON_CPU, most)
    sizes = []
    for modality, name in arrays.items():
        kept = _kept(layout, modality, name)
        if not place.gpu:
            sizes.append(min(kept.values(), default=BATCH_ON_CPU))
            continue
        if place.gpu not in kept:
            size = _measured(teacher(), modality, place.here, min(most, LARGEST_BATCH))
            around.notice(f"{size} {modality}s go through the teacher at once, by the memory of {place.gpu}")
            kept = {**kept, place.gpu: size}
            atomic.publish_json(layout.batch_size(modality, name), dict(kept), fence=fence)
        sizes.append(kept[place.gpu])
    if not place.gpu:
        around.notice(f"{min(sizes)} rows go through the teacher at once; this process has no GPU to measure on")
    return max(1, min(int(min(sizes) * around.gpu_share), most))


def batch_that_fits(peak_bytes: Callable[[int], int], free_bytes: int, most: int) -> int:
    """Returns the largest power of two, up to `most` rows, whose pass leaves some of the memory free; at least 1.

    Args:
        peak_bytes: does a pass over so many rows, and returns the bytes that it took at its peak, 0 where nobody knows;
            raises `MemoryError` where they do not fit.
        free_bytes: that may be taken.
        most: rows.
    """
    size = 1
    while 2 * size <= most:
        try:
            peak = peak_bytes(2 * size)
        except MemoryError:
            break
        if not peak:
            return min(BATCH_ON_CPU, most)
        if peak > _SHARE_USED * free_bytes:
            break
        size *= 2
    return size


def _measured(teacher: Teacher, modality: Modality, device: str, most: int) -> int:
    """Returns the rows of a batch that real passes on the GPU `device` show to fit."""
    import torch

    height, width = teacher.preprocess.size
    blank, longest = np.zeros((height, width, 3), np.uint8), max(PROBE_TEXTS, key=len)

    def peak_bytes(rows: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            if modality == "image":
                teacher.encode_images(padded_pixels([blank], rows, teacher.preprocess))
            else:
                teacher.encode_texts(padded_texts([longest] * rows, rows))
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error
        return int(torch.cuda.max_memory_allocated(device) - before)

    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    size = batch_that_fits(peak_bytes, free + unused, most)
    torch.cuda.empty_cache()
    return size


def _kept(layout: Layout, modality: Modality, array: str) -> Mapping[str, int]:
    """Returns name of a GPU -> rows of a batch, as they were measured for `array`.

    Raises:
        DamagedError: the file holds something else.
    """
    path = layout.batch_size(modality, array)
    if not path.exists():
        return {}
    kept: Any = read_json(path)
    if not isinstance(kept, dict) or not all(type(size) is int and size >= 1 for size in kept.values()):
        raise DamagedError(f"{path} is damaged: delete it, and the next extract measures again")
    return kept
