"""Tasks for the pending parts of a cache, and reports of parts that are done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cache_schema.cache import CachedArray
from cache_schema.layout import Modality
from cache_schema.plan import Part
from cache_schema.stored_pixels import StoredPixels


@dataclass(frozen=True)
class PartTask:
    """One planned part with everything of it that is pending: it is read once for all of that.

    Attributes:
        modality: image or text.
        part: as planned.
        part_fingerprint: the fingerprint of what the plan says.
        arrays: names of those in which the part is pending.
        pixels: whether its stored pixels are pending.
        may_kill: a worker died at it, or may have: it is for a worker that may die (`stages.parts.fatal_rows`).
        fatal: offset -> how workers died of that row. No teacher sees it; a blank stands in its place.
        only: the offsets that are looked at, to learn whether the worker survives; then nothing is committed.
    """

    modality: Modality
    part: Part
    part_fingerprint: str
    arrays: tuple[str, ...]
    pixels: bool = False
    may_kill: bool = False
    fatal: Mapping[int, str] = field(default_factory=dict)
    only: range | None = None

    def __str__(self) -> str:
        return f"{self.modality} part {self.part.number}"


@dataclass(frozen=True)
class PartReport:
    """One part that is done: all that was pending of it is committed.

    Attributes:
        modality: image or text.
        part: its number.
        num_rows: planned rows.
        num_bad: rows without a feature in the first of the modality's arrays; 0 when that was there already.
        seconds: spent on each stage, such as read, decode, forward and write.
    """

    modality: Modality
    part: int
    num_rows: int
    num_bad: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: "PartReport") -> "PartReport":
        seconds = {stage: self.seconds.get(stage, 0.0) + value for stage, value in other.seconds.items()}
        return replace(self, num_bad=self.num_bad + other.num_bad, seconds={**self.seconds, **seconds})


def pending_tasks(arrays: Sequence[CachedArray], pixels: StoredPixels | None = None) -> Iterator[PartTask]:
    """Yields every part of a modality that is pending in one of its `arrays`, or in its `pixels`, in order."""
    plan = arrays[0].plan
    for part in plan.parts():
        pending = tuple(array.name for array in arrays if part.number not in array.committed)
        without_pixels = plan.modality == "image" and pixels is not None and part.number not in pixels.committed
        if pending or without_pixels:
            yield PartTask(plan.modality, part, plan.part_fingerprint(part), pending, without_pixels)
