"""What stage two is asked to do. Imports nothing heavy, so that a command line can show it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cache_schema.errors import UsageError, unknown_name

LARGEST_DEFAULT_BATCH = 12_288
"""Images of a step in the published runs, when the corpus has as many."""

PICTURES = ("auto", "originals", "stored")
DEFAULT_STUDENT = "open_clip:ViT-B-32"
DEFAULT_WEIGHTS: Mapping[str, float] = {"vl": 0.7, "pvl": 0.3, "udist": 0.0, "feature": 0.0}
DEFAULT_TEMPERATURES: Mapping[str, float] = {"vl": 1.0, "pvl": 3.0, "udist": 7.0}


@dataclass(frozen=True)
class DistillConfig:
    """What `pipeline distill` is asked to do. The only home of its defaults.

    What changes the student:

    Attributes:
        cache: folder of the feature cache.
        student: specification, see `stages.students`; None means that of `from_run`, or else `open_clip:ViT-B-32`.
        from_run: start from the final weights of this run instead of random ones.
        image_array: of the cache; None means that of its only teacher. Where that has views beyond view 0, an epoch
            replays one of them in turn: the boxes that the teacher saw, against their features. One such view named
            here is replayed alone; with view 0 the student draws its own crops, against the feature of view 0.
        pictures: originals, stored (the pixels in the cache) or auto: those that the replayed views were cut from, else
            the stored ones where the cache has all of them.
        text_array: likewise.
        images: selection of image rows to train on; None means all ok ones.
        texts: likewise of sentences.
        negatives: which sentences a step looks at: `random`, or `mined:NAME` for neighbours of its images.
        mined_share: at most this part of a step's sentences are mined ones.
        steps: of training; None means 100 epochs.
        batch_size: images of a step; None means the smaller of 12,288 and the ok images.
        text_batch_size: sentences of a step; None means the smaller of 12,288 and the ok sentences.
        micro_batch_size: images of one forward pass, for less memory; the loss still sees the whole batch. None means
            the whole batch at once.
        logit_scale: factor on cosines; None means that of the teacher.
        weights: loss name -> weight; losses that are not named keep their default.
        temperatures: loss name -> temperature; likewise.
        learning_rate: at the end of the warm-up.
        min_learning_rate: at the end of training.
        warmup_learning_rate: at the first step.
        warmup_share: part of the steps that warms up.
        weight_decay: of all parameters but biases, norms and positional tables.
        min_crop: least share of a picture's area that a crop of its own shows; 1 shows nearly all of it.
        flip: mirror half of the student's own crops.
        seed: of the random start, the order, the crops and the sentences.
        precision: of the student's forward pass: `auto` (bfloat16 on a GPU, float32 on the CPU), float32 or bfloat16.
        window_parts: parts whose rows are shuffled together; None means all, or 32 in caches of more than 64 parts.
        picture_memory_bytes: pictures are kept decoded when all of them fit into this.

    What changes only where, how fast and how safely:

    Attributes:
        out: folder of the run.
        fresh: forget what is in `out` and start over, instead of resuming.
        device: cpu, cuda or cuda:N.
        num_threads: CPU threads of the student; 0 leaves torch's own choice.
        decode_workers: threads or processes that make crops.
        checkpoint_steps: save at least every so many steps,
        checkpoint_seconds: and at least every so many seconds.
        keep_checkpoints: how many of the newest checkpoints are kept.
    """

    cache: Path
    out: Path
    student: str | None = None
    from_run: Path | None = None
    image_array: str | None = None
    pictures: str = "auto"
    text_array: str | None = None
    images: str | None = None
    texts: str | None = None
    negatives: str = "random"
    mined_share: float = 0.5
    steps: int | None = None
    batch_size: int | None = None
    text_batch_size: int | None = None
    micro_batch_size: int | None = None
    logit_scale: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float = 8e-4
    min_learning_rate: float = 4e-5
    warmup_learning_rate: float = 4e-6
    warmup_share: float = 0.04
    weight_decay: float = 0.05
    min_crop: float = 0.08
    flip: bool = True
    seed: int = 0
    precision: str = "auto"
    window_parts: int | None = None
    picture_memory_bytes: int = 2 << 30
    fresh: bool = False
    device: str = "cpu"
    num_threads: int = 0
    decode_workers: int = 2
    checkpoint_steps: int = 1000
    checkpoint_seconds: float = 120.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name, defaults in (("weights", DEFAULT_WEIGHTS), ("temperatures", DEFAULT_TEMPERATURES)):
            object.__setattr__(self, name, _merged(defaults, getattr(self, name)))
        for name in ("steps", "batch_size", "text_batch_size", "micro_batch_size", "window_parts"):
            if getattr(self, name) is not None:
                _require(self, name, least=1, most=2**31 - 1)
        for name in ("checkpoint_steps", "keep_checkpoints"):
            _require(self, name, least=1, most=2**31 - 1)
        for name in ("seed", "num_threads", "decode_workers"):
            _require(self, name, least=0, most=2**31 - 1)
        for name in ("mined_share", "warmup_share", "weight_decay", "min_learning_rate", "warmup_learning_rate"):
            _require(self, name, least=0, most=1)
        _require(self, "learning_rate", above=0, most=1)
        _require(self, "min_crop", above=0, most=1)
        _require(self, "checkpoint_seconds", above=0, most=1e9)
        _require(self, "picture_memory_bytes", least=0, most=2**63 - 1)
        if self.logit_scale is not None:
            _require(self, "logit_scale", above=0, most=1e6)
        if self.pictures not in PICTURES:
            raise unknown_name("pictures", self.pictures, PICTURES)
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise unknown_name("precision", self.precision, ("auto", "float32", "bfloat16"))
        _check_losses(self)
        if self.negatives != "random" and not self.negatives.startswith("mined:"):
            raise UsageError(
                f"negatives {self.negatives!r} are unknown: use random, or mined:NAME for mined neighbours"
            )
        if self.negatives == "mined:":
            raise UsageError("negatives 'mined:' name no neighbours: write mined:NAME as given to `pipeline mine`")


def _merged(defaults: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    return {**defaults, **{loss: float(value) for loss, value in given.items()}}


def _require(
    config: DistillConfig, name: str, *, above: float | None = None, least: float | None = None, most: float
) -> None:
    value = getattr(config, name)
    low = f"above {above:g}" if above is not None else f"{least:g} or more"
    enough = math.isfinite(value) and (value > above if above is not None else value >= (least or 0))
    if not enough or value > most:
        raise UsageError(f"{name} is {value:g}: use a value {low}, at most {most:g}")


def _check_losses(config: DistillConfig) -> None:
    for loss, weight in config.weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"the weight of loss {loss} is {weight:g}: use 0 or more")
    if not any(config.weights.values()):
        raise UsageError("all losses have weight 0, so there is nothing to learn from: give one of them a weight")
    for loss, temperature in config.temperatures.items():
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"the temperature of loss {loss} is {temperature:g}: use a value above 0")
