"""What the fields of a distill configuration do: those of the method change the weights, the others do not.

The tests run over the fields of the class, so a new field has to be entered here, with a corpus on which it matters.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache_schema.cache import Cache
from stages.distill.config import DistillConfig, Method, Running
from stages.distill.run import distill
from stages.runs.folder import RunFolder
from stages.runs.record import read_record
from stages.settings.declare import settings_in
from tests.corpora.pictures import jpeg
from tests.stages.distill import telling_corpus
from tests.stages.distill.recorded_steps import RecordedStep, first_steps
from tests.stages.distill.telling_corpus import ARRAY, TEACHER, telling_config

STEPS = 2
CHANGED = 1e-2
"""A setting has an effect when the weights are at least this far away, as a share of the way that they went."""
SAME = 1e-5
"""A setting has none when the gradient of every step is at most this far away, as a share of its norm."""

BATCH_NORM = "timm:test_efficientnet?image_size=32"
OUT = Path("anywhere")


@dataclass(frozen=True)
class Run:
    """The first steps of a run, and the fingerprint of what it was asked."""

    steps: list[RecordedStep]
    fingerprint: str


class Corpora:
    """Caches by name, and the runs on them; each is made once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, Run] = {}
        self._numbers = itertools.count()

    @cached_property
    def telling(self) -> Path:
        """Three views, mined sentences, and selections of every second row."""
        path = telling_corpus.extract(telling_corpus.write_sources(self.folder), "cache", views=3)
        telling_corpus.mine_by_hand(path)
        telling_corpus.select_half(path)
        return path

    @cached_property
    def other_teacher(self) -> Path:
        """The same pictures and sentences, seen by another teacher."""
        return telling_corpus.extract(self._sources, "other", teacher=f"{TEACHER}&seed=1")

    @cached_property
    def stored_pixels(self) -> Path:
        """The same with pixels stored at half their size."""
        return telling_corpus.extract(self._sources, "stored", store_pixels=20)

    @cached_property
    def two_scales(self) -> Path:
        """One teacher that was trained with two logit scales: two arrays of the sentences."""
        telling_corpus.extract(self._sources, "scales")
        return telling_corpus.extract(self._sources, "scales", teacher=f"{TEACHER[:-2]}20", add_teacher=True)

    @cached_property
    def large_jpegs(self) -> Path:
        """Pictures that a decoder may read at a fraction of their size."""
        (self._sources / "large").mkdir()
        for number in range(14):
            (self._sources / "large" / f"{number:02d}.jpg").write_bytes(jpeg(200, 180, number))
        return telling_corpus.extract(self._sources, "large jpegs", pictures="large")

    @cached_property
    def first_round(self) -> Path:
        """A finished run."""
        config = replace(telling_config(self.telling, self.folder / "first round"), steps=1)
        distill(config)
        return config.out

    @property
    def _sources(self) -> Path:
        return self.telling.parent

    def run(self, config: DistillConfig) -> Run:
        """Returns the first steps of `config`, in a folder of its own unless it names one.

        A fresh run finds another one in its folder.
        """
        if repr(config) not in self._runs:
            folder = self.folder / f"run {next(self._numbers)}" if config.out == OUT else config.out
            here = replace(config, out=folder)
            if config.fresh:
                first_steps(replace(here, fresh=False, seed=config.seed + 1), 1)
            steps = first_steps(here, STEPS)
            self._runs[repr(config)] = Run(steps, read_record(RunFolder(folder)).fingerprint)
        return self._runs[repr(config)]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return Corpora(tmp_path_factory.mktemp("corpora") / "sources")


OfCorpora = Callable[[Corpora], Any]


@dataclass(frozen=True)
class Trial:
    """Two values of one field, each a plain value or a function of the corpora.

    Attributes:
        one: a value.
        other: another.
        corpus: where they are tried, an attribute of `Corpora`.
        given: what else is asked for in both runs.
    """

    one: Any
    other: Any
    corpus: str = "telling"
    given: Mapping[str, Any] = field(default_factory=dict)

    def runs(self, name: str, corpora: Corpora) -> tuple[Run, Run]:
        """Returns the two runs that differ in field `name` alone."""
        config = telling_config(getattr(corpora, self.corpus), OUT)

        def asked(value: Any) -> DistillConfig:
            changes = {**self.given, name: value}
            return replace(config, **{key: v(corpora) if callable(v) else v for key, v in changes.items()})

        return corpora.run(asked(self.one)), corpora.run(asked(self.other))


METHOD = {
    "cache": Trial(lambda corpora: corpora.telling, lambda corpora: corpora.other_teacher),
    "student": Trial("timm:test_vit?image_size=32", "timm:test_vit?image_size=32&drop=0.2"),
    "from_run": Trial(None, lambda corpora: corpora.first_round),
    "init": Trial(None, lambda corpora: corpora.first_round),
    "image_array": Trial(f"{ARRAY}.v0", f"{ARRAY}.v1"),
    "pictures": Trial("originals", "stored", corpus="stored_pixels"),
    "text_array": Trial(
        *(lambda corpora, place=place: Cache.open(corpora.two_scales).arrays("text")[place] for place in (0, 1)),
        corpus="two_scales",
    ),
    "images": Trial(None, "half-image"),
    "texts": Trial(None, "half-text"),
    "negatives": Trial("random", "mined:by-hand"),
    "hold_out": Trial(None, "0.3"),
    "mined_share": Trial(0.2, 0.6, given={"negatives": "mined:by-hand"}),
    "steps": Trial(7, 4, given={"warmup_share": 0.0}),
    "batch_size": Trial(12, 11),
    "text_batch_size": Trial(17, 16),
    "norm_batch_size": Trial(None, 6, given={"student": BATCH_NORM}),
    "clip_grad": Trial(0.0, 1e-3, given={"weight_decay": 0.0}),
    "logit_scale": Trial(None, 36.0),
    "weights": Trial({}, {"udist": 0.1}),
    "temperatures": Trial({}, {"pvl": 2.0}),
    "learning_rate": Trial(2e-3, 2.1e-3),
    "min_learning_rate": Trial(1e-3, 5e-4, given={"warmup_share": 0.0}),
    "warmup_learning_rate": Trial(5e-4, 6e-4),
    "warmup_share": Trial(0.3, 0.4),
    "weight_decay": Trial(0.3, 1.0),
    "min_crop": Trial(0.4, 0.5),
    "flip": Trial(True, False),
    "seed": Trial(11, 12, given={"from_run": lambda corpora: corpora.first_round}),
    "precision": Trial("float32", "bfloat16"),
    "window_parts": Trial(2, 1),
    "picture_memory_bytes": Trial(2 << 30, 0, corpus="large_jpegs", given={"decode_workers": 0}),
}

RUNNING = {
    "out": Trial(lambda corpora: corpora.folder / "here", lambda corpora: corpora.folder / "there"),
    "fresh": Trial(False, True),
    "device": Trial("cpu", "cuda", given={"precision": "float32"}),
    "micro_batch_size": Trial(None, 5),
    "num_threads": Trial(1, 2),
    "decode_workers": Trial(0, 2, given={"picture_memory_bytes": 0}),
    "checkpoint_steps": Trial(1000, 1),
    "checkpoint_seconds": Trial(120.0, 1e-6),
    "keep_checkpoints": Trial(2, 1, given={"checkpoint_steps": 1}),
}


ELSEWHERE = {
    "ema": "tests/stages/distill/test_averaged.py",
    "skip_nonfinite": "tests/stages/distill/test_member.py",
    "amend": "tests/stages/distill/test_amend.py",
    "probe": "tests/stages/distill/test_held_out.py",
    "measure_steps": "tests/stages/distill/test_held_out.py",
    "compile": "tests/stages/distill/test_compiled.py",
}
"""Fields whose effect is not seen in the first steps of two runs, and where it is tried."""


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].double().cpu().flatten() for name in sorted(tensors)])


def share_changed(one: Run, other: Run) -> float:
    """Returns how far apart the weights after the last step are, as a share of the way that they went in it."""
    before, ours, theirs = (flat(step.weights) for step in (*one.steps[-2:], other.steps[-1]))
    return ((ours - theirs).norm() / (ours - before).norm()).item()


def test_every_field_is_tried_as_what_it_is_declared_to_be() -> None:
    assert sorted(METHOD) == sorted(settings_in(Method).keys() - ELSEWHERE.keys())
    assert sorted(RUNNING) == sorted(settings_in(Running).keys() - ELSEWHERE.keys())
    for name, path in ELSEWHERE.items():
        assert name in Path(path).read_text()


@pytest.mark.parametrize("name", [name for name in settings_in(Method) if name not in ELSEWHERE])
def test_a_field_of_the_method_changes_the_weights_and_the_fingerprint(name: str, corpora: Corpora) -> None:
    assert name in METHOD, f"enter {name} in METHOD, with a corpus on which it matters"
    one, other = METHOD[name].runs(name, corpora)
    assert share_changed(one, other) > CHANGED
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        )
        if name == "device"
        else name
        for name in settings_in(Running)
        if name not in ELSEWHERE
    ],
)
def test_a_field_of_running_changes_neither_gradients_nor_the_fingerprint(name: str, corpora: Corpora) -> None:
    # cuDNN computes convolutions in TF32 unless told otherwise, which is another arithmetic and not another setting.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        one, other = RUNNING[name].runs(name, corpora)
    for ours, theirs in zip(one.steps, other.steps, strict=True):
        gradient = flat(ours.gradients)
        assert (gradient - flat(theirs.gradients)).norm() <= SAME * gradient.norm()
    assert one.fingerprint == other.fingerprint
