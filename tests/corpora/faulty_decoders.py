"""Ways in which a decoder fails that cannot be had from a small file: it hangs, crashes or eats memory."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from stages.images.crops import Crop
from stages.images.prepare import CropPreparation, Prepared, TrainingPreparation


@dataclass(frozen=True)
class FaultyPlan(CropPreparation):
    """Does what the payload says, and prepares every other payload as it should."""

    def prepare(self, payload: bytes, crop: Crop | None) -> Prepared:
        if payload == b"hang":
            time.sleep(600)
        if payload == b"hang with signals blocked in Python":
            while True:
                sum(range(10**6))
        if payload == b"crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if payload == b"exit":
            os._exit(0)
        if payload.startswith(b"crash once "):
            _crash_once(payload.removeprefix(b"crash once "))
            return super().prepare(b"", crop)
        if payload == b"eat memory":
            try:
                bytearray(8 << 30)
            except MemoryError:
                return Prepared(None, "img-memory", "test")
        return super().prepare(payload, crop)


@dataclass(frozen=True)
class ModulesPlan(CropPreparation):
    """Tells which modules the decode process has, as its reason."""

    def prepare(self, payload: bytes, crop: Crop | None) -> Prepared:
        import sys

        return Prepared(None, "modules", " ".join(sorted(sys.modules)))


@dataclass(frozen=True)
class ProcessPlan(CropPreparation):
    """Tells the process id, as its reason; sleeps first when asked to."""

    def prepare(self, payload: bytes, crop: Crop | None) -> Prepared:
        time.sleep(float(payload or b"0"))
        return Prepared(None, "pid", str(os.getpid()))


@dataclass(frozen=True)
class BrokenPlan(CropPreparation):
    """Cannot be loaded in a child."""

    def __setstate__(self, state: dict[str, object]) -> None:
        raise SystemExit(7)


@dataclass(frozen=True)
class LatePlan(TrainingPreparation):
    """Is late as often as there are files in the folder `LATE`, one less each time, and then as it should be."""

    def prepare(self, payload: bytes, wanted: tuple[Crop, bool]) -> Prepared:
        for marker in sorted(Path(os.environ["LATE"]).iterdir()):
            try:
                marker.unlink()
            except FileNotFoundError:
                continue
            time.sleep(600)
        return super().prepare(payload, wanted)


@dataclass(frozen=True)
class MeetingPlan(TrainingPreparation):
    """Leaves a file in the folder `MEETING`, and waits until two lie there."""

    def prepare(self, payload: bytes, wanted: tuple[Crop, bool]) -> Prepared:
        folder = Path(os.environ["MEETING"])
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.01)
        return super().prepare(payload, wanted)


def _crash_once(marker: bytes) -> None:
    if not os.path.exists(marker):
        os.mkdir(marker)
        os.kill(os.getpid(), signal.SIGKILL)
