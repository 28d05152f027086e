"""A student that is about to learn or to go on, and what the record of its run says of it."""

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

import torch

from cache_schema.json_file import Json
from cache_schema.records import parts_by_numerics
from stages.distill.config import ResolvedMethod, Running
from stages.distill.feed import Feed
from stages.runs.record import RunRecord
from stages.settings.record import record_of
from stages.students import Student


@dataclass(frozen=True)
class DistillJob:
    """A student about to learn or to go on.

    Attributes:
        method: what changes the student, resolved.
        running: what does not.
        feed: what it learns from.
        student: with the weights that the run starts from, in training mode, on `device`.
        start_sha256: SHA-256 of the weights of the run it starts from; None for a random start.
        device: where the student is.
    """

    method: ResolvedMethod
    running: Running
    feed: Feed
    student: Student
    start_sha256: str | None
    device: torch.device

    @cached_property
    def group_size(self) -> int | None:
        """Returns how many rows share batch statistics or a random draw; None for a student without either."""
        return None if self.student.rows_are_independent else self.method.norm_batch_size

    def new_record(self) -> RunRecord:
        """Returns the record of this run before its first step."""
        method, feed = self.method, self.feed
        images, texts = feed.images, feed.texts
        about: dict[str, Json] = {
            "cache": str(feed.cache.path),
            "image_array": images.name,
            "views": [] if feed.replay is None else [array.name for array in feed.replay.arrays],
            "text_array": texts.name,
            "image_selection": method.images,
            "text_selection": method.texts,
            "negatives": method.negatives,
            "hold_out": method.hold_out,
            "from": None if method.from_run is None else str(method.from_run.absolute()),
            "teacher": {
                "specification": texts.recipe.specification,
                "identity": dict(texts.recipe.teacher),
                "logit_scale": texts.recipe.logit_scale,
                "logit_bias": texts.recipe.logit_bias,
                "image_fingerprint": images.recipe.fingerprint,
                "text_fingerprint": texts.recipe.fingerprint,
            },
            "numerics": {array.modality: parts_by_numerics(array.records()) for array in (images, texts)},
            "sessions": [],
        }
        identities: dict[str, Json] = {
            "student": self.student.description.to_json(),
            "from": self.start_sha256,
            "pictures": feed.pictures_of(self.student.preprocess.size),
            **feed.identities(),
        }
        if self.student.started_from is not None:
            identities["init"] = self.student.started_from
        return RunRecord({**record_of(method), **identities}, about)

    def session(self, first_step: int, micro_batch_size: int, num_processes: int = 1) -> dict[str, Json]:
        """Returns what must be the same for a resumed run to be the same bit for bit, and is no part of the method."""
        return {
            "first_step": first_step,
            "device": self.device.type if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "num_threads": torch.get_num_threads(),
            "micro_batch_size": micro_batch_size,
            "processes": num_processes,
            "compile": self.running.compile,
            "tools": {name: version(name) for name in ("torch", "open_clip_torch", "timm", "numpy", "pillow")},
        }
