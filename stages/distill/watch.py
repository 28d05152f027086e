"""What is measured of one student while it learns, on images that it never trains on, and which checkpoint is best."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from cache_schema import atomic
from cache_schema.errors import DamagedError
from cache_schema.json_file import read_sealed, seal
from stages.distill.config import ResolvedMethod
from stages.distill.job import DistillJob
from stages.distill.probe import Probe
from stages.runs.checkpoint import checkpoint_steps
from stages.runs.folder import RunFolder
from stages.students.encoder import StudentEncoder


class Watch:
    """Measures a student every so many steps, and remembers the step with the most agreement on held-out images.

    Args:
        job: of the student.
        folder: of its run; `checkpoints/best.json` names the best step.
        probe: an evaluation set, or None.
        fence: of the lock of the run.
        done: steps that the student has; a best step after them is none any more.
    """

    def __init__(
        self, job: DistillJob, folder: RunFolder, probe: Probe | None, *, fence: atomic.Fence | None, done: int
    ) -> None:
        self._job = job
        self._path = folder.checkpoints / "best.json"
        self._probe = probe
        self._fence = fence
        self._best: tuple[int, float] | None = None
        if self._path.exists():
            try:
                stored = read_sealed(self._path)
                best = int(stored["step"]), float(stored["agreement"])
            except (DamagedError, KeyError, TypeError, ValueError):
                best = done + 1, 0.0
            if best[0] <= done and best[0] in checkpoint_steps(folder.checkpoints):
                self._best = best

    @property
    def kept_steps(self) -> frozenset[int]:
        """Returns the steps whose checkpoints stay: the best one."""
        return frozenset() if self._best is None else frozenset({self._best[0]})

    def is_due(self, done: int, steps: int) -> bool:
        """Returns whether the student is to be measured after `done` of `steps` steps."""
        if self._job.feed.held_out is None and self._probe is None:
            return False
        return done == steps or done % self._job.running.measure_steps == 0

    def measure(self, method: ResolvedMethod, weights: AbstractContextManager[object]) -> dict[str, float]:
        """Returns what `HeldOut.measure` and `Probe.measure` do; neither state nor random draws of training change.

        Args:
            method: of the step before.
            weights: context in which the student has the weights that are measured.
        """
        student, device, held_out = self._job.student, self._job.device, self._job.feed.held_out
        found: dict[str, float] = {}
        with weights:
            try:
                encoder = StudentEncoder(student, device=device)
                if held_out is not None:
                    found |= held_out.measure(encoder, method, device)
                if self._probe is not None:
                    found |= self._probe.measure(encoder)
            finally:
                student.train()
        return found

    def is_best(self, measures: dict[str, float]) -> bool:
        """Returns whether the agreement is greater than that of any step before."""
        agreement = measures.get("agreement")
        return agreement is not None and (self._best is None or agreement > self._best[1])

    def choose(self, step: int, measures: dict[str, float]) -> Callable[[], None]:
        """Makes `step` the best one; returns what writes that down, to be called when there is a checkpoint of it."""
        self._best = step, measures["agreement"]
        best = seal({"step": step, "agreement": measures["agreement"]})
        return partial(atomic.publish_json, self._path, best, fence=self._fence)
