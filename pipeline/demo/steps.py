"""The demo's steps: each is one command of the pipeline, as a user would type it."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from pipeline.demo.data import DataConfig, DemoData

NEIGHBOURS = "nearest"


@dataclass(frozen=True)
class StudentPlan:
    """The training of one student.

    Attributes:
        name: the name of its run, in the report too.
        student: specification; empty for the one it starts from.
        start: name of the run it starts from; empty for none.
        weights: architecture of `pipeline.demo.imagenet.WEIGHTS` whose ImageNet weights it starts from; empty for none.
        options: the options of `pipeline distill`.
        beside_previous: train it at the same time as the student before it.
    """

    name: str
    student: str = ""
    start: str = ""
    weights: str = ""
    options: tuple[str, ...] = ()
    beside_previous: bool = False


# One thread each: two students side by side get more out of two cores than one student with two threads. Both begin
# with ImageNet weights, and then pixels are worth more than steps (docs/distilling.md).
_RECIPE = (
    *("--batch-size", "32", "--text-batch-size", "1024", "--loss", "feature=8", "--min-crop", "0.6"),
    *("--num-threads", "1", "--decode-workers", "1"),
)

STUDENTS = (
    StudentPlan(
        "lite0",
        student="timm:tf_efficientnet_lite0?image_size=96",
        weights="tf_efficientnet_lite0",
        options=("--steps", "280", *_RECIPE, "--learning-rate", "1e-3"),
    ),
    StudentPlan(
        "lite2",
        student="timm:tf_efficientnet_lite2?image_size=64",
        weights="tf_efficientnet_lite2",
        options=("--steps", "340", *_RECIPE, "--learning-rate", "1e-3"),
        beside_previous=True,
    ),
    StudentPlan(
        "lite0-again",
        start="lite0",
        options=("--steps", "80", *_RECIPE, "--learning-rate", "2e-4", "--negatives", f"mined:{NEIGHBOURS}"),
    ),
)


@dataclass(frozen=True)
class DemoConfig:
    """The settings of the demo. The only home of their defaults.

    Attributes:
        data: pictures and sentences.
        students: in the order they are trained; one that starts from another comes after it.
        extract_options: the options of `pipeline extract`.
        num_neighbours: mined sentences of every picture.
    """

    data: DataConfig = field(default_factory=DataConfig)
    students: tuple[StudentPlan, ...] = STUDENTS
    extract_options: tuple[str, ...] = ("--batch-size", "256")
    num_neighbours: int = 32


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: for the report's seconds.
        arguments: after `pipeline`.
        makes: what it leaves behind; None for a measurement.
        beside_previous: run it at the same time as the step before it.
    """

    name: str
    arguments: tuple[str, ...]
    makes: Path | None = None
    beside_previous: bool = False

    @property
    def command_line(self) -> str:
        """The command as one would type it."""
        return shlex.join(["pipeline", *self.arguments])


@dataclass(frozen=True)
class DemoFolder:
    """The files of a demo, in the folder `root`."""

    root: Path

    @property
    def data(self) -> DemoData:
        return DemoData(self.root / "data")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def run(self, name: str) -> Path:
        return self.root / "runs" / name

    def weights(self, architecture: str) -> Path:
        return self.root / "weights" / f"{architecture}.safetensors"

    def step(self, name: str) -> Path:
        return self.root / "steps" / f"{name.replace(' ', '-')}.json"

    @property
    def teacher(self) -> str:
        """Specification of the composed teacher, with an absolute path, so that it can be loaded from anywhere."""
        return f"python:pipeline.demo.teacher:make?alignment={quote(str(self.data.alignment.absolute()))}"


def steps_of(folder: DemoFolder, config: DemoConfig) -> list[Step]:
    """Returns the commands in order; the data must be there."""
    cache = ("--cache", str(folder.cache))
    sources = ("--images", folder.data.tars, "--texts", str(folder.data.sentences))
    mined = ("--from", "image", "--to", "text", "--k", str(config.num_neighbours), "--name", NEIGHBOURS)
    extract = ("extract", *sources, "--teacher", folder.teacher, *cache, *config.extract_options)
    runs = (str(folder.run(plan.name)) for plan in config.students)
    return [
        Step("extract", extract, makes=folder.cache),
        Step("mine", ("mine", *cache, *mined), makes=folder.cache),
        *(_distill(folder, plan, cache) for plan in config.students),
        Step("evaluate", ("evaluate", folder.teacher, *runs, "--data", str(folder.data.held_out))),
    ]


def _distill(folder: DemoFolder, plan: StudentPlan, cache: tuple[str, ...]) -> Step:
    start = ("--from", str(folder.run(plan.start))) if plan.start else ("--student", plan.student)
    init = ("--init", str(folder.weights(plan.weights))) if plan.weights else ()
    out = folder.run(plan.name)
    arguments = ("distill", *cache, *start, *init, "--out", str(out), *plan.options)
    return Step(f"distill {plan.name}", arguments, makes=out / "model", beside_previous=plan.beside_previous)
