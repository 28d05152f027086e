"""Where the seconds of a training step go, and what to change about the slowest of them.

A phase of a step is marked where it happens, `with phase("forward"):`, and counted by whichever `Meter` is open in the
same thread. The marks are those of `torch.profiler.record_function` too, so that a trace of torch shows them by name.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain

import torch

FEED_PHASES = ("gather", "read", "decode", "upload")
"""Phases that go on beside earlier steps: only `wait`, the part that a step waits for, costs time."""
_BUSY_SHARE = 0.05
_ADVICE = {
    "gather": "looking up rows and features: put the cache on a local disk",
    "read": "reading pictures: a nearer disk, or stored pixels (extract --store-pixels)",
    "decode": "decoding pictures: more --decode-workers, or stored pixels (extract --store-pixels)",
    "upload": "moving pictures to the device: look what else uses its bus",
    "loss": "the losses: fewer sentences a step (--text-batch-size)",
    "exchange": "handing features and gradients to the other processes: fewer of them, or a faster network",
    "optimizer": "the optimizer: a larger --batch-size has fewer steps",
    "save": "checkpoints: a larger --checkpoint-steps, or a faster disk for --out",
    "measure": "measuring held-out pictures: a larger --measure-steps",
}
_KEPT_SHARE = 0.9
_CPU = torch.device("cpu")


class Meter:
    """Seconds by phase, summed until they are taken.

    Args:
        device: on which the work of the phases is done. On a GPU its own clock counts, and nothing waits for it: what
            has not ended when seconds are taken is part of the next ones.
    """

    def __init__(self, device: torch.device = _CPU) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._events: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Context in which the phases of this thread are counted here."""
        token = _METER.set(self)
        try:
            yield
        finally:
            _METER.reset(token)

    def taken(self) -> dict[str, float]:
        """Returns the seconds by phase since the last call."""
        while self._events and self._events[0][2].query():
            name, start, end = self._events.popleft()
            self._add(name, start.elapsed_time(end) / 1000)
        seconds, self._seconds = self._seconds, {}
        return seconds

    @contextmanager
    def _count(self, name: str) -> Iterator[None]:
        if self._device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            began = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - began)

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Context that is the phase `name` of a step; phases do not lie inside each other."""
    meter = _METER.get()
    with torch.profiler.record_function(name):
        if meter is None:
            yield
        else:
            with meter._count(name):
                yield


class Bottleneck:
    """Names what steps take longest for, over the last ten or so."""

    def __init__(self) -> None:
        self._mean: dict[str, float] = {}

    def of(self, *seconds: Mapping[str, float]) -> str:
        """Returns a few words about the bottleneck, given the seconds by phase of all that the next step took."""
        for name in {*self._mean, *chain(*seconds)}:
            now = sum(some.get(name, 0.0) for some in seconds)
            self._mean[name] = _KEPT_SHARE * self._mean.get(name, now) + (1 - _KEPT_SHARE) * now
        return said_of(self._mean)


def said_of(seconds: Mapping[str, float]) -> str:
    """Returns which phase is the bottleneck of steps with these `seconds`, its share, and what to change about it.

    A step that hardly waits is bound by the student, unless another phase of the step itself takes longer than its
    passes do.
    """
    own = {name: value for name, value in seconds.items() if name not in FEED_PHASES}
    total = sum(own.values())
    if total <= 0:
        return ""
    shares = {name: value / total for name, value in own.items()}
    waited = shares.pop("wait", 0.0)
    student = shares.pop("forward", 0.0) + shares.pop("backward", 0.0)
    slowest, share = max(shares.items(), key=lambda item: item[1], default=("", 0.0))
    if waited >= _BUSY_SHARE and waited >= share:
        feed = {name: seconds.get(name, 0.0) for name in FEED_PHASES}
        return f"waits {waited:.0%} for {_ADVICE[max(feed, key=lambda name: feed[name])]}"
    if share > student and slowest in _ADVICE:
        return f"{share:.0%} for {_ADVICE[slowest]}"
    return f"{student:.0%} in the student's passes"
