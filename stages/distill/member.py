"""One student of a command: its steps, its log, its checkpoints, and its end."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from cache_schema import atomic
from cache_schema.errors import PipelineError
from cache_schema.json_file import Json
from cache_schema.recipe import differences
from stages.device import is_out_of_memory
from stages.distill.amend import methods_of
from stages.distill.averaged import AveragedWeights
from stages.distill.batches import Batch
from stages.distill.compiled import compiled_or_not
from stages.distill.config import ResolvedMethod
from stages.distill.exported import export_trained
from stages.distill.group import Group
from stages.distill.job import DistillJob
from stages.distill.log import TrainingLog
from stages.distill.losses import TeacherSide
from stages.distill.meter import Meter, phase
from stages.distill.micro_batch import MicroBatch
from stages.distill.optimizer import make_optimizer
from stages.distill.probe import Probe
from stages.distill.step import rate_of, try_step
from stages.distill.watch import Watch
from stages.images.preprocess import CropShape
from stages.runs.checkpoint import Checkpoint, require_finite, restore, tensors_of
from stages.runs.folder import RunFolder
from stages.runs.record import RunRecord, write_record
from stages.runs.saver import CheckpointSaver


class Member:
    """A student that learns from its last checkpoint, if any, to the end of its run.

    Every process that has a share of its batches has one; only that of process 0 writes and measures.

    Args:
        job: what is trained.
        folder: the folder of the run, locked by process 0.
        record: what run.json says.
        checkpoint: where it goes on from; None starts it.
        probe: the evaluation set that it is measured on while it learns, or None.
        fence: the fence of the lock; None for a process that does not write.
        group: the processes that it learns in.
        notice: called with a sentence about anything a person should know.

    Attributes:
        done: steps that this student has.
        failed: what ended it before its last step; None while all is well.
        phases: seconds by phase of its last step.
    """

    def __init__(
        self,
        job: DistillJob,
        folder: RunFolder,
        record: RunRecord,
        checkpoint: Checkpoint | None,
        *,
        probe: Probe | None,
        fence: atomic.Fence | None,
        group: Group,
        notice: Callable[[str], None],
    ) -> None:
        self.job = job
        self.folder = folder
        self.record = record
        self.fence = fence
        self.group = group
        self.say = notice
        self.failed: PipelineError | None = None
        self._methods = methods_of(job, record)
        self._optimizer = make_optimizer(job.student, weight_decay=job.method.weight_decay)
        self._average = AveragedWeights(job.student, job.method.ema) if job.method.ema else None
        self.done, self._skipped = 0, 0
        self._metrics: dict[str, float] = {}
        if checkpoint is not None:
            self._restore(checkpoint)
        self._run = compiled_or_not(job.student, job.device, notice) if job.running.compile else job.student
        self._watch = Watch(job, folder, probe, fence=fence, done=self.done)
        self._started = self._saved_at = time.monotonic()
        self._log: TrainingLog | None = None
        self._saver = CheckpointSaver(
            folder.checkpoints, run=record.fingerprint, keep=job.running.keep_checkpoints, fence=fence
        )
        self._meter = Meter(job.device)
        self.phases: Mapping[str, float] = {}

    @property
    def steps(self) -> int:
        """Returns the steps of the whole run."""
        return self._methods[-1][1].steps

    @property
    def shape(self) -> CropShape:
        """Returns the shape of the pictures that this student takes."""
        return self.job.student.preprocess.crop_shape

    @property
    def has_ended(self) -> bool:
        return self.record.result is not None

    def share_out(self, shares: Sequence[slice]) -> None:
        """Settles what every process computes of a batch, and how many images of it at once.

        Args:
            shares: the rows of every process, in the order of their ranks.
        """
        last_session = self.record.about["sessions"][-1:] if self.done else ()
        self._micro_batch = MicroBatch(self.job, last_session, self.say, shares=shares, group=self.group)
        self._note_session()

    def open_files(self, stack: ExitStack) -> None:
        """Makes the log and the saving of checkpoints ready, until `stack` is left; in process 0 alone."""
        stack.enter_context(self._saver)
        self._log = stack.enter_context(TrainingLog(self.folder, first_step=self.done))
        if self._log.num_lost_lines:
            self.say(f"{self.folder.metrics} lacks {self._log.num_lost_lines:,} steps before the checkpoint")

    def step(self, batch: Batch, pixels_BHWC: Tensor, teacher: TeacherSide, *, shared: Mapping[str, float]) -> str:
        """Does one optimizer step, logs it, and returns a few words about it.

        Args:
            batch: of step `done`.
            pixels_BHWC: uint8, in the shape that this student takes, on its device; of this process's share.
            teacher: what the teacher says of the batch, on the same device.
            shared: seconds by phase of what the step cost before any student saw it.

        Raises:
            DivergedError: a loss or gradient is not finite. The last checkpoint stays.
            EnvironmentProblem: the device has not enough memory for the smallest pass, or the checkpoint under way
                could not be written.
        """
        assert batch.step == self.done
        method = self._method_of(batch.step)
        statistics = [(buffer, buffer.clone()) for buffer in self.job.student.buffers()]
        while True:
            try:
                with self._meter.open():
                    metrics = try_step(
                        self.job,
                        method,
                        batch,
                        pixels_BHWC,
                        teacher,
                        optimizer=self._optimizer,
                        forward=self._run,
                        passes=self._micro_batch.passes(),
                        first_place=self._micro_batch.first_place,
                        may_be_left_out=self._skipped < method.skip_nonfinite,
                        group=self.group,
                    )
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._put_back(statistics)
                # An exception keeps the frames, and with them the tensors, of where it was raised.
                shortage = error.with_traceback(None)
            self._optimizer.zero_grad(set_to_none=True)
            self._micro_batch.halve(shortage)
            self._note_micro_batch_size()
        if metrics is None:
            self._put_back(statistics)
            self._skipped += 1
            metrics = {"learning_rate": rate_of(method, batch.step), "skipped": float(self._skipped)}
            self.say(
                f"step {batch.step + 1:,} of {self.folder.root} is not finite and was left out "
                f"({self._skipped:,} of at most {method.skip_nonfinite:,})"
            )
        elif self._average is not None:
            self._average.update(batch.step)
        metrics["epoch"] = (batch.step + 1) * method.batch_size / len(self.job.feed.sequence.rows)
        self.done = batch.step + 1
        self._metrics = {**self._metrics, **metrics}
        self.phases = self._meter.taken()
        if self._log is None:
            return ""
        self._saver.require_well()
        phases = {**shared, **self.phases}
        speed = self._log.write(self.done, metrics, num_images=method.batch_size, phases=phases)
        if self._watch.is_due(self.done, self.steps):
            self._measure(method)
        if "loss" not in metrics:
            return f"left out, {speed:,.0f} images/s"
        return f"loss {metrics['loss']:.4f}, cosine {metrics['cosine']:.3f}, {speed:,.0f} images/s"

    def checkpoint_is_due(self) -> bool:
        """Returns whether enough steps or seconds went by since the last checkpoint."""
        running = self.job.running
        late = time.monotonic() - self._saved_at >= running.checkpoint_seconds
        return self.done % running.checkpoint_steps == 0 or late

    def save(self, *, best: dict[str, float] | None = None, wait: bool = False) -> None:
        """Begins to write a checkpoint of the steps that are done.

        Args:
            best: what was measured after them, where it is the best so far.
            wait: until the checkpoint is whole.

        Raises:
            DivergedError: a value of the training state is not finite.
            EnvironmentProblem: this checkpoint or the one before it cannot be written.
        """
        # The step that was best until now stays until the record of the best one names this step.
        also = self._watch.kept_steps
        with self._meter.open(), phase("save"):
            self._saver.save(
                {**tensors_of(self.job.student, self._optimizer), **self._averaged()},
                step=self.done,
                state={"metrics": dict(self._metrics), "skipped": self._skipped},
                also=also,
                then=None if best is None else self._watch.choose(self.done, best),
            )
            if wait:
                self._saver.wait()
        self._saved_at = time.monotonic()

    def end(self) -> None:
        """Saves the last step, exports the student and writes the result into the record."""
        job, method = self.job, self._methods[-1][1]
        self.save(wait=True)
        # A last step may overflow although its loss and gradient did not.
        with self._exported_weights():
            require_finite(job.student.state_dict(), f"the student that {self.folder.root} trained")
            exported = export_trained(job.student, self.folder, self.record, fence=self.fence, notice=self.say)
        result: dict[str, Json] = {
            "run": str(self.folder.root),
            "model": str(self.folder.model),
            "student": job.student.specification,
            "num_parameters": sum(p.numel() for p in job.student.parameters()),
            "steps": method.steps,
            "images_seen": method.steps * method.batch_size,
            "loss": self._metrics.get("loss"),
            "cosine": self._metrics.get("cosine"),
            **exported,
            "seconds": round(time.monotonic() - self._started, 3),
        }
        self.record = replace(self.record, result=result)
        write_record(self.folder, self.record, fence=self.fence)

    def learn_result(self) -> None:
        """Makes the result that process 0 wrote known in all processes."""
        self.record = replace(self.record, result=self.group.broadcast(self.record.result))

    def _measure(self, method: ResolvedMethod) -> None:
        """Measures the student on what it never trains on, and keeps the checkpoint that is best there."""
        assert self._log is not None
        with self._meter.open(), phase("measure"):
            measures = self._watch.measure(method, self._exported_weights())
        self._log.write_held_out(self.done, measures)
        if self._watch.is_best(measures):
            self.save(best=measures)

    def _exported_weights(self) -> AbstractContextManager[object]:
        """Returns the context in which the student has the weights that are measured and exported."""
        return nullcontext() if self._average is None else self._average.in_place()

    def _method_of(self, step: int) -> ResolvedMethod:
        return next(method for first, method in reversed(self._methods) if first <= step)

    @staticmethod
    def _put_back(statistics: list[tuple[Tensor, Tensor]]) -> None:
        with torch.no_grad():
            for buffer, before in statistics:
                buffer.copy_(before)

    def _restore(self, checkpoint: Checkpoint) -> None:
        restore(self.job.student, self._optimizer, checkpoint, beside=self._averaged())
        self.done = checkpoint.step
        self._skipped = checkpoint.state.get("skipped", 0)
        self._metrics = dict(checkpoint.state.get("metrics", {}))
        self.say(f"resuming {self.folder.root} after step {checkpoint.step:,} of {self.steps:,}")

    def _averaged(self) -> dict[str, Tensor]:
        return {} if self._average is None else {f"ema.{name}": value for name, value in self._average.tensors.items()}

    def _note_session(self) -> None:
        """Adds this process to the record, and says when it cannot repeat the earlier ones bit for bit."""
        now = self.job.session(self.done, self._micro_batch.size, self.group.size)
        sessions = [*self.record.about["sessions"]]
        if self.done and sessions:
            # A session of an older version did not know of everything.
            before = {**now, "processes": 1, **sessions[-1], "first_step": self.done}
            found = differences(now, before)
            if found:
                shown = "; ".join(f"{field}: {ours} now, {theirs} before" for field, ours, theirs in found)
                self.say(f"this run will not be bit-identical to an uninterrupted one ({shown})")
        self._write_sessions([*sessions, now])

    def _note_micro_batch_size(self) -> None:
        *before, now = self.record.about["sessions"]
        self._write_sessions([*before, {**now, "micro_batch_size": self._micro_batch.size}])

    def _write_sessions(self, sessions: list[Json]) -> None:
        self.record = replace(self.record, about={**self.record.about, "sessions": sessions})
        if self.group.leads:
            write_record(self.folder, self.record, fence=self.fence)
