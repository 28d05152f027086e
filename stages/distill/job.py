"""A distillation run that is about to start or to go on, and what its record says of it."""

from dataclasses import dataclass
from importlib.metadata import version

import torch

from cache_schema.cache import Cache, CachedArray
from cache_schema.json_file import Json, fingerprint_of
from cache_schema.neighbours import NeighboursReader
from cache_schema.records import parts_by_numerics
from cache_schema.selections import Selection
from stages.distill.config import ResolvedMethod, Running
from stages.distill.order import EpochSequence, Rows
from stages.distill.payloads import SmallPictures
from stages.distill.replay import Replay
from stages.runs.record import RunRecord
from stages.settings.record import record_of
from stages.students import Student


@dataclass(frozen=True)
class DistillJob:
    """A run about to start or to go on.

    Attributes:
        method: what changes the student, resolved.
        running: what does not.
        cache: open.
        images: the teacher's complete image array of view 0.
        texts: the teacher's complete text array.
        neighbours: mined sentences, or None.
        image_selection: rows that images are taken from, or None.
        text_selection: rows that sentences are taken from, or None.
        sequence: order of the image rows.
        text_rows: eligible sentences, ascending.
        replay: views of the teacher that are shown again, or None.
        small: the stored pixels that are read in place of the originals, or None.
        in_memory: whether pictures are kept decoded.
        student: with the weights that the run starts from, in training mode, on `device`.
        start_sha256: SHA-256 of the weights of the run it starts from; None for a random start.
        device: where the student is.
    """

    method: ResolvedMethod
    running: Running
    cache: Cache
    images: CachedArray
    texts: CachedArray
    neighbours: NeighboursReader | None
    image_selection: Selection | None
    text_selection: Selection | None
    sequence: EpochSequence
    text_rows: Rows
    replay: Replay | None
    small: SmallPictures | None
    in_memory: bool
    student: Student
    start_sha256: str | None
    device: torch.device

    def new_record(self) -> RunRecord:
        """Returns the record of this run before its first step."""
        method = self.method
        about: dict[str, Json] = {
            "cache": str(self.cache.path),
            "image_array": self.images.name,
            "views": [] if self.replay is None else [array.name for array in self.replay.arrays],
            "text_array": self.texts.name,
            "image_selection": method.images,
            "text_selection": method.texts,
            "negatives": method.negatives,
            "from": None if method.from_run is None else str(method.from_run.absolute()),
            "teacher": {
                "specification": self.texts.recipe.specification,
                "identity": dict(self.texts.recipe.teacher),
                "logit_scale": self.texts.recipe.logit_scale,
                "logit_bias": self.texts.recipe.logit_bias,
                "image_fingerprint": self.images.recipe.fingerprint,
                "text_fingerprint": self.texts.recipe.fingerprint,
            },
            "numerics": {array.modality: parts_by_numerics(array.records()) for array in (self.images, self.texts)},
            "sessions": [],
        }
        return RunRecord({**record_of(method), **self._as_in_format_1(), **self._identities()}, about)

    def _as_in_format_1(self) -> dict[str, Json]:
        """Returns the values that run format 1 keeps in another form than the settings have."""
        method = self.method
        used = [name for name, weight in method.weights.items() if weight]
        return {
            "weights": {name: method.weights[name] for name in used},
            "temperatures": {name: method.temperatures.get(name) for name in used},
            "mined_share": None if self.neighbours is None else method.mined_share,
        }

    def _identities(self) -> dict[str, Json]:
        """Returns what the names in the method stand for: a name may come to mean something else."""
        kept = "in memory" if self.in_memory else "streamed"
        found: dict[str, Json] = {
            "student": self.student.description.to_json(),
            "from": self.start_sha256,
            "images": _identity_of(self.images),
            "texts": _identity_of(self.texts),
            "image_selection": None if self.image_selection is None else self.image_selection.digest,
            "text_selection": None if self.text_selection is None else self.text_selection.digest,
            "negatives": None if self.neighbours is None else fingerprint_of(self.neighbours.recipe.to_json()),
            "pictures": kept if self.small is None else f"stored, {kept}",
        }
        if self.replay is not None:
            found["views"] = [_identity_of(array) for array in self.replay.arrays]
        if self.small is not None:
            found["pixels"] = self.small.pixels.recipe.fingerprint
        return found

    def session(self, first_step: int) -> dict[str, Json]:
        """Returns what must be the same for a resumed run to be the same bit for bit, and cannot be asked for."""
        return {
            "first_step": first_step,
            "device": self.device.type if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "num_threads": torch.get_num_threads(),
            "tools": {name: version(name) for name in ("torch", "open_clip_torch", "timm", "numpy", "pillow")},
        }


def _identity_of(array: CachedArray) -> dict[str, Json]:
    return {"fingerprint": array.recipe.fingerprint, "digest": array.digest()}
