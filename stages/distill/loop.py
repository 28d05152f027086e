"""The training loop: batches in, one optimizer step each, metrics and checkpoints out."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from cache_schema import atomic
from cache_schema.errors import DivergedError, EnvironmentProblem, PipelineError
from cache_schema.json_file import Json
from cache_schema.layout import MODALITIES
from cache_schema.progress import Progress
from cache_schema.recipe import differences
from stages.distill.batches import Batch, BatchMaker
from stages.distill.gradient_cache import backward_of_batch
from stages.distill.job import DistillJob
from stages.distill.log import TrainingLog
from stages.distill.losses import total_loss
from stages.distill.optimizer import learning_rate_of_step, make_optimizer
from stages.distill.payloads import Originals
from stages.distill.pictures import Pictures, PicturesInMemory, PicturesStreamed
from stages.export.model_folder import export_image_tower, export_pair
from stages.prefetch import prefetched
from stages.runs.checkpoint import newest_checkpoint, require_finite, restore, save_checkpoint, tensors_of
from stages.runs.folder import RunFolder
from stages.runs.record import RunRecord, write_record

_SHOWN_KEYS = 5


class TrainingStopped(KeyboardInterrupt):
    """`should_stop` said so; the state was saved, and the same call goes on from there."""


class TrainingLoop:
    """One process's part of a run, from its last checkpoint, if any, to its end.

    Args:
        job: what is trained.
        folder: the folder of the run, locked by this process.
        record: what run.json says.
        fence: the fence of the lock.
        progress: called after every step.
        notice: called with a sentence about anything a person should know.
        should_stop: asked before every step.
    """

    def __init__(
        self,
        job: DistillJob,
        folder: RunFolder,
        record: RunRecord,
        *,
        fence: atomic.Fence,
        progress: Progress,
        notice: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.job = job
        self.method = job.method
        self.running = job.running
        self.folder = folder
        self.record = record
        self.fence = fence
        self.progress = progress
        self.say = notice
        self.should_stop = should_stop
        self.optimizer = make_optimizer(job.student, weight_decay=job.method.weight_decay)
        self.saved_at = time.monotonic()

    def finish(self) -> dict[str, Json]:
        """Trains to the last step, exports the student, returns the result; errors as `distill.run.distill`."""
        started = time.monotonic()
        first_step = self._resume()
        self._note_session(first_step)
        metrics: dict[str, float] = {}
        with ExitStack() as stack:
            log = stack.enter_context(TrainingLog(self.folder, first_step=first_step))
            if log.num_lost_lines:
                self.say(f"{self.folder.metrics} lacks {log.num_lost_lines:,} steps before the checkpoint")
            maker = self._batch_maker(stack.enter_context(self._pictures()))
            batches = stack.enter_context(
                closing(prefetched(map(maker.batch_of_step, range(first_step, self.method.steps))))
            )
            waiting = time.perf_counter()
            for batch in batches:
                waited = time.perf_counter() - waiting
                if self.should_stop():
                    self._save(batch.step)
                    raise TrainingStopped(
                        f"stopped at step {batch.step:,} of {self.method.steps:,}, state saved in {self.folder.root}: "
                        "run again to go on"
                    )
                metrics = self._step_within_memory(batch)
                speed = log.write(batch.step + 1, metrics, num_images=self.method.batch_size, waited_seconds=waited)
                done = batch.step + 1
                note = f"loss {metrics['loss']:.4f}, cosine {metrics['cosine']:.3f}, {speed:,.0f} images/s"
                self.progress(done, self.method.steps, "steps", note)
                if done < self.method.steps and self._checkpoint_is_due(done):
                    self._save(done)
                waiting = time.perf_counter()
        return self._end(metrics, seconds=time.monotonic() - started)

    def _step_within_memory(self, batch: Batch) -> dict[str, float]:
        try:
            return self._step(batch)
        except torch.OutOfMemoryError as error:
            micro = self.method.micro_batch_size
            raise EnvironmentProblem(
                f"{self.job.device} has not enough memory for {micro:,} images in one forward pass and a loss over "
                f"{self.method.batch_size:,} images and {self.method.text_batch_size:,} sentences: try "
                f"--micro-batch-size {max(1, micro // 4)}, which leaves the loss as it is, or a smaller "
                "--text-batch-size"
            ) from error

    def _step(self, batch: Batch) -> dict[str, float]:
        """Does one optimizer step and returns its metrics."""
        job, method, device = self.job, self.method, self.job.device
        teacher_image_BD = torch.from_numpy(batch.teacher_image_BD).to(device)
        text_TD = torch.from_numpy(batch.text_TD).to(device)
        losses: dict[str, Tensor] = {}

        def loss_of_features(image_BD: Tensor) -> Tensor:
            total, parts = total_loss(
                image_BD,
                teacher_image_BD,
                text_TD,
                weights=method.weights,
                temperatures=method.temperatures,
                logit_scale=method.logit_scale,
            )
            losses.update({"loss": total.detach()}, **{name: part.detach() for name, part in parts.items()})
            return total

        rate = learning_rate_of_step(
            batch.step,
            method.steps,
            peak=method.learning_rate,
            least=min(method.min_learning_rate, method.learning_rate),
            warmup_start=min(method.warmup_learning_rate, method.learning_rate),
            warmup_share=method.warmup_share,
        )
        self.optimizer.zero_grad(set_to_none=True)
        image_BD = backward_of_batch(
            job.student,
            torch.from_numpy(batch.pixels_BHWC).to(device),
            loss_of_features,
            micro_batch_size=self.method.micro_batch_size,
            randomness=(method.seed, batch.step),
            precision=method.precision,
        )
        gradients = [p.grad for p in job.student.parameters() if p.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        self._require_finite(batch, image_BD, losses["loss"], grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return {
            **{name: value.item() for name, value in losses.items()},
            "cosine": functional.cosine_similarity(image_BD, teacher_image_BD).mean().item(),
            "grad_norm": grad_norm.item(),
            "learning_rate": rate,
            "epoch": (batch.step + 1) * method.batch_size / len(job.sequence.rows),
        }

    def _require_finite(self, batch: Batch, image_BD: Tensor, loss: Tensor, grad_norm: Tensor) -> None:
        if torch.isfinite(loss) and torch.isfinite(grad_norm):
            return
        spoilt = (~torch.isfinite(image_BD).all(dim=1)).cpu().numpy()
        rows = batch.rows[spoilt] if spoilt.any() else batch.rows
        keys = ", ".join(repr(key) for key in self.job.cache.keys("image", rows[:_SHOWN_KEYS]))
        raise DivergedError(
            f"step {batch.step + 1:,} of {self.folder.root} has loss {loss.item():g} and gradient norm "
            f"{grad_norm.item():g} ({spoilt.sum():,} of {len(spoilt):,} student features are not finite; images "
            f"{keys}{' …' if len(rows) > _SHOWN_KEYS else ''}): the last checkpoint stays; lower the learning rate or "
            "use float32, with --fresh or another --out"
        )

    def _resume(self) -> int:
        """Restores the newest whole checkpoint and returns the steps that are done."""
        checkpoint = newest_checkpoint(
            self.folder.checkpoints, run=self.record.fingerprint, num_steps=self.method.steps, notice=self.say
        )
        if checkpoint is None:
            return 0
        restore(self.job.student, self.optimizer, checkpoint)
        self.say(f"resuming {self.folder.root} after step {checkpoint.step:,} of {self.method.steps:,}")
        return checkpoint.step

    def _note_session(self, first_step: int) -> None:
        """Adds this process to the record, and says when it cannot repeat the earlier ones bit for bit."""
        now = self.job.session(first_step)
        sessions = [*self.record.about["sessions"]]
        if first_step and sessions:
            found = differences({**now, "first_step": 0}, {**sessions[-1], "first_step": 0})
            if found:
                shown = "; ".join(f"{field}: {ours} now, {theirs} before" for field, ours, theirs in found)
                self.say(f"this run will not be bit-identical to an uninterrupted one ({shown})")
        self.record = replace(self.record, about={**self.record.about, "sessions": [*sessions, now]})
        write_record(self.folder, self.record, fence=self.fence)

    def _checkpoint_is_due(self, done: int) -> bool:
        late = time.monotonic() - self.saved_at >= self.running.checkpoint_seconds
        return done % self.running.checkpoint_steps == 0 or late

    def _save(self, done: int) -> None:
        save_checkpoint(
            self.folder.checkpoints,
            tensors_of(self.job.student, self.optimizer),
            step=done,
            run=self.record.fingerprint,
            state={},
            keep=self.running.keep_checkpoints,
            fence=self.fence,
        )
        self.saved_at = time.monotonic()

    def _pictures(self) -> Pictures:
        job, preprocess, workers = self.job, self.job.student.preprocess, self.job.running.decode_workers
        payloads = job.small or Originals()
        if not job.in_memory:
            return PicturesStreamed(preprocess, payloads, num_workers=workers, exact=job.replay is not None)
        return PicturesInMemory(
            job.cache, job.sequence.rows, preprocess, payloads, num_threads=workers, progress=self.progress
        )

    def _batch_maker(self, pictures: Pictures) -> BatchMaker:
        job = self.job
        return BatchMaker(
            cache=job.cache,
            images=job.images,
            texts=job.texts,
            sequence=job.sequence,
            pictures=pictures,
            neighbours=job.neighbours,
            text_rows=job.text_rows,
            method=job.method,
            replay=job.replay,
        )

    def _export(self) -> dict[str, Json]:
        """Writes the model folder and returns `weights_sha256` and `has_text_tower`.

        A teacher whose text tower cannot be had now is no error: the image tower is complete, and the notice says how
        to add the other one later.
        """
        student, folder, teacher = self.job.student, self.folder, self.record.about["teacher"]
        sha256 = export_image_tower(
            student,
            folder.model,
            about={"run": self.record.fingerprint, "teacher": teacher},
            teacher_probes={m: folder.probes(m).read_bytes() for m in MODALITIES if folder.probes(m).exists()},
            fence=self.fence,
        )
        has_text_tower = False
        if teacher["specification"].startswith("open_clip:"):
            try:
                export_pair(student, folder.model, teacher["specification"], fence=self.fence)
                has_text_tower = True
            except PipelineError as error:
                self.say(
                    f"{folder.model} holds the image tower only, because the teacher's text tower could not be added "
                    f'({error}); to complete it: python -c "from stages.export.model_folder import add_text_tower; '
                    f"add_text_tower('{folder.root}')\""
                )
        return {"weights_sha256": sha256, "has_text_tower": has_text_tower}

    def _end(self, metrics: dict[str, float], *, seconds: float) -> dict[str, Json]:
        # A last step may overflow although its loss and gradient did not.
        require_finite(self.job.student.state_dict(), f"the student that {self.folder.root} trained")
        exported = self._export()
        result: dict[str, Json] = {
            "run": str(self.folder.root),
            "model": str(self.folder.model),
            "student": self.job.student.specification,
            "num_parameters": sum(p.numel() for p in self.job.student.parameters()),
            "steps": self.method.steps,
            "images_seen": self.method.steps * self.method.batch_size,
            "loss": metrics["loss"],
            "cosine": metrics["cosine"],
            **exported,
            "seconds": round(seconds, 3),
        }
        write_record(self.folder, replace(self.record, result=result), fence=self.fence)
        return result
