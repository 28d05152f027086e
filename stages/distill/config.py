"""The configuration of stage two. Imports nothing heavy, so that a command line can show it."""

from collections.abc import Mapping
from pathlib import Path

from cache_schema.errors import UsageError
from stages.device import num_cores
from stages.settings.check import check_settings
from stages.settings.declare import configuration, own, running, setting

LARGEST_DEFAULT_BATCH = 12_288
"""Images of a step in the published runs, when the corpus has as many."""

LARGEST_DEFAULT_NORM_BATCH = 256
"""Images that share batch statistics, when a batch has as many."""

DEFAULT_STUDENT = "open_clip:ViT-B-32"
DEFAULT_WEIGHTS: Mapping[str, float] = {"vl": 0.7, "pvl": 0.3, "udist": 0.0, "feature": 0.0}
DEFAULT_TEMPERATURES: Mapping[str, float] = {"vl": 1.0, "pvl": 3.0, "udist": 7.0}

_BATCH_IF_NONE = f"{LARGEST_DEFAULT_BATCH}, or all"


@configuration
class Method:
    """The settings that change the student. All enter the fingerprint of the run, as values or as what these name."""

    cache: Path = setting(help="Folder of the cache.", recorded=False)
    student: str | None = own(
        default=None,
        help="See `list students`.",
        more="With `from_run`, None means that run's.",
        if_none=DEFAULT_STUDENT,
        recorded=False,
    )
    from_run: Path | None = own(
        default=None,
        flag="--from",
        metavar="RUN[@STEP]",
        help="Start from this run's weights.",
        more="Its last ones, or those of a checkpoint; None starts from random ones.",
        recorded=False,
    )
    init: Path | None = own(
        default=None,
        rare=True,
        metavar="FILE|RUN[@STEP]",
        help="Weights that --student begins with.",
        more="Of a checkpoint, an open_clip directory or another student, even of another width. Their mean, std and "
        "activation come along.",
        if_none="random",
        recorded=False,
    )
    images: str | None = setting(
        default=None, help="Train on this selection of images.", if_none="all ok ones", recorded=False
    )
    texts: str | None = setting(
        default=None, help="Look at this selection of sentences.", if_none="all ok ones", recorded=False
    )
    negatives: str = setting(
        default="random",
        metavar="random|mined:NAME",
        help="Which sentences a step looks at.",
        more="Any, or with mined:NAME also mined neighbours of its images.",
        recorded=False,
    )
    steps: int | None = own(default=None, least=1, help="Steps of training.", if_none="100 epochs")
    batch_size: int | None = setting(default=None, least=1, help="Images of a step.", if_none=_BATCH_IF_NONE)
    text_batch_size: int | None = setting(default=None, least=1, help="Sentences of a step.", if_none=_BATCH_IF_NONE)
    logit_scale: float | None = own(default=None, above=0, most=1e6, help="Factor on cosines.", if_none="the teacher's")
    weights: Mapping[str, float] = own(
        default_factory=dict,
        least=0,
        most=1e9,
        flag="--loss",
        each="the weight of loss",
        help="Weight of a loss; repeatable.",
        more="Losses that are not named keep the weight they have in `DEFAULT_WEIGHTS`.",
    )
    learning_rate: float = own(default=8e-4, above=0, most=1, help="At the end of the warm-up.")
    seed: int = setting(default=0, least=0, help="Of the random start, order, crops and sentences.")
    precision: str = own(
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="Of the forward pass.",
        more="auto: that of the run that goes on; at its start bfloat16 on a GPU, float32 on the CPU.",
    )
    image_array: str | None = setting(
        default=None,
        rare=True,
        help="View of the images.",
        more="Where the only teacher of the cache has views beyond view 0, an epoch replays one of them in turn: the "
        "boxes that the teacher saw, against their features. One such view named here is replayed alone; with view 0 "
        "the student draws its own crops, against the feature of view 0.",
        if_none="all but 0 in turn",
        recorded=False,
    )
    pictures: str = setting(
        default="auto",
        choices=("auto", "originals", "stored"),
        rare=True,
        help="What crops are cut from.",
        more="stored: the pixels in the cache. auto: the pictures that the replayed views were cut from, else the "
        "stored ones where the cache has all of them.",
        recorded=False,
    )
    text_array: str | None = setting(
        default=None, rare=True, help="Array of sentences.", if_none="the only one", recorded=False
    )
    hold_out: str | None = setting(
        default=None,
        rare=True,
        metavar="SELECTION|SHARE",
        help="Images that are never trained on.",
        more="A selection, or a share of all, such as 0.05. The student is measured on them while it learns, and its "
        "best checkpoint is kept.",
        if_none="none",
        recorded=False,
    )
    mined_share: float = setting(default=0.5, least=0, most=1, rare=True, help="Most mined sentences of a step.")
    temperatures: Mapping[str, float] = own(
        default_factory=dict,
        above=0,
        most=1e9,
        flag="--temperature",
        each="the temperature of loss",
        rare=True,
        help="Of a loss; repeatable.",
        more="Losses that are not named keep the temperature they have in `DEFAULT_TEMPERATURES`.",
    )
    min_learning_rate: float = own(default=4e-5, least=0, most=1, rare=True, help="At the end of training.")
    warmup_learning_rate: float = own(default=4e-6, least=0, most=1, rare=True, help="At the first step.")
    warmup_share: float = own(default=0.04, least=0, most=1, rare=True, help="Part of the steps that warms up.")
    weight_decay: float = own(default=0.05, least=0, most=1, rare=True, help="Not of biases, norms, positions.")
    min_crop: float = setting(
        default=0.08,
        above=0,
        most=1,
        rare=True,
        help="Least share of a picture in a crop.",
        more="Of its area, and of the student's own crops; 1 shows nearly all of it.",
    )
    flip: bool = setting(
        default=True, flag="--flip/--no-flip", rare=True, help="Mirror half of the crops.", more="The student's own."
    )
    norm_batch_size: int | None = own(
        default=None,
        least=2,
        rare=True,
        help="Images that share batch statistics.",
        more="Or one random draw of dropout. A batch is cut into groups of nearly this size, for a student that has "
        "either.",
        if_none=f"{LARGEST_DEFAULT_NORM_BATCH}, or the batch",
    )
    clip_grad: float = own(
        default=0.0, least=0, most=1e9, rare=True, help="Largest norm of a step's gradient; 0 is any."
    )
    skip_nonfinite: int = own(
        default=0,
        least=0,
        rare=True,
        help="Steps of a run that may be left out.",
        more="Those whose loss or gradient is not finite; the next such step ends the run.",
    )
    ema: float = own(
        default=0.0,
        least=0,
        most=0.999999,
        rare=True,
        help="Decay of averaged weights; 0 averages none.",
        more="The student that is exported and measured then has the exponential moving average of the weights.",
    )
    window_parts: int | None = setting(
        default=None, least=1, rare=True, help="Parts shuffled together.", if_none="all, or 32 of many"
    )
    # A picture in memory was decoded whole, a streamed one perhaps at a fraction of its size: pixels differ a little.
    picture_memory_bytes: int = setting(
        default=2 << 30,
        least=0,
        most=2**62,
        rare=True,
        help="Keep decoded pictures that fit.",
        more="All of them or none.",
        recorded=False,
    )

    def __post_init__(self) -> None:
        for name, defaults in (("weights", DEFAULT_WEIGHTS), ("temperatures", DEFAULT_TEMPERATURES)):
            object.__setattr__(self, name, _merged(defaults, getattr(self, name)))
        check_settings(self)
        if not any(self.weights.values()):
            raise UsageError("all losses have weight 0, so there is nothing to learn from: give one of them a weight")
        if self.negatives != "random" and not self.negatives.startswith("mined:"):
            raise UsageError(
                f"negatives {self.negatives!r} are unknown: use random, or mined:NAME for mined neighbours"
            )
        if self.init is not None and self.from_run is not None:
            raise UsageError(
                f"--init {self.init} and --from {self.from_run} both say what to begin with: use --from for a further "
                "round of the same student, --init for another one"
            )
        if self.negatives == "mined:":
            raise UsageError("negatives 'mined:' name no neighbours: write mined:NAME as given to `pipeline mine`")


@configuration
class Running:
    """The settings that change only where, how fast and how safely a student trains."""

    out: Path = running(own=True, after="student", help="Folder of the run; made when missing.")
    fresh: bool = running(
        default=False,
        flag="--fresh/--resume",
        after="seed",
        help="Start over, or go on with what is in --out.",
    )
    device: str = running(
        default="auto",
        metavar="auto|cpu|cuda",
        help="Where the student trains.",
        more="auto: a GPU where there is one. Or cuda:N.",
    )
    micro_batch_size: int | None = running(
        default=None,
        least=1,
        after="text_batch_size",
        own=True,
        help="Images of a forward pass.",
        more="For less memory; the loss still sees the whole batch.",
        if_none="as memory allows",
    )
    probe: Path | None = running(
        default=None,
        rare=True,
        help="Evaluation set to measure on while it learns.",
        more="Zero-shot; the teacher's text tower is loaded once, before the first step.",
        if_none="none",
    )
    measure_steps: int = running(
        default=500, least=1, rare=True, help="Measure held-out images and the probe every so many steps."
    )
    amend: str | None = running(
        default=None,
        rare=True,
        metavar="REASON",
        help="Go on with another learning rate, steps or losses.",
        more="From the newest checkpoint on; run.json keeps what changed, and why.",
    )
    compile: bool = running(
        default=False,
        flag="--compile/--no-compile",
        rare=True,
        own=True,
        help="Use torch.compile.",
        more="Where it fails the student runs as it is.",
    )
    num_threads: int = running(default=0, least=0, most=4096, rare=True, help="CPU threads; 0 is torch's own choice.")
    decode_workers: int | None = running(
        default=None,
        least=0,
        most=4096,
        rare=True,
        help="Threads or processes that make crops.",
        if_none="the cores",
    )
    checkpoint_steps: int = running(default=1000, least=1, rare=True, help="Save at least every so many steps,")
    checkpoint_seconds: float = running(
        default=120.0, above=0, most=1e9, rare=True, help="and at least every so many seconds."
    )
    keep_checkpoints: int = running(default=2, least=1, rare=True, help="Newest checkpoints kept.")

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def num_decoders(self) -> int:
        """Returns how many threads or processes make crops."""
        return num_cores() if self.decode_workers is None else self.decode_workers


@configuration
class DistillConfig(Running, Method):
    """The settings of `pipeline distill`. The only home of their defaults."""

    # The fields of the last base come first.

    def __post_init__(self) -> None:
        # Checks the settings of both, for it looks at what it is given.
        Method.__post_init__(self)


class ResolvedMethod(Method):
    """A method on a certain cache: what the cache and the device decide is decided. Resolved again, it stays the same.

    What may still be None: `from_run`, `images` and `texts` (nothing is named), `image_array` (several views in turn)
    and `window_parts` (all parts at once).
    """

    student: str
    steps: int
    batch_size: int
    text_batch_size: int
    norm_batch_size: int
    logit_scale: float
    text_array: str

    def __post_init__(self) -> None:
        # What was asked was checked then; the rest is the word of the cache.
        assert all(getattr(self, name) is not None for name in ResolvedMethod.__annotations__)


def _merged(defaults: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    return {**defaults, **{loss: float(value) for loss, value in given.items()}}
