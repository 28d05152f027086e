"""The demo's steps: each is one command of the pipeline, as a user would type it."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from pipeline.demo.data import DataConfig, DemoData

NEIGHBOURS = "nearest"


@dataclass(frozen=True)
class StudentPlan:
    """How one student is trained.

    Attributes:
        name: of its run, and in the report.
        student: specification; empty for the one it starts from.
        start: name of the run it starts from; empty for random weights.
        options: of `pipeline distill`.
    """

    name: str
    student: str = ""
    start: str = ""
    options: tuple[str, ...] = ()


_RECIPE = ("--batch-size", "64", "--text-batch-size", "1024", "--loss", "feature=1", "--min-crop", "0.35")

STUDENTS = (
    StudentPlan(
        "mobilenet",
        student="timm:mobilenetv3_small_075?image_size=64",
        options=("--steps", "600", *_RECIPE, "--learning-rate", "3e-3"),
    ),
    StudentPlan(
        "starnet",
        student="timm:starnet_s050?image_size=64",
        options=("--steps", "600", *_RECIPE, "--learning-rate", "3e-3"),
    ),
    StudentPlan(
        "mobilenet-again",
        start="mobilenet",
        options=("--steps", "300", *_RECIPE, "--learning-rate", "1e-3", "--negatives", f"mined:{NEIGHBOURS}"),
    ),
)


@dataclass(frozen=True)
class DemoConfig:
    """What the demo does. The only home of its defaults.

    Attributes:
        data: pictures and sentences.
        students: in the order they are trained; one that starts from another comes after it.
        extract_options: of `pipeline extract`.
        num_neighbours: mined sentences of every picture.
    """

    data: DataConfig = field(default_factory=DataConfig)
    students: tuple[StudentPlan, ...] = STUDENTS
    extract_options: tuple[str, ...] = ("--batch-size", "64")
    num_neighbours: int = 32


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: for the report's seconds.
        arguments: after `pipeline`.
        makes: what it leaves behind; None for a measurement.
    """

    name: str
    arguments: tuple[str, ...]
    makes: Path | None = None

    @property
    def command_line(self) -> str:
        """The command as one would type it."""
        return shlex.join(["pipeline", *self.arguments])


@dataclass(frozen=True)
class DemoFolder:
    """Where everything of a demo is, in the folder `root`."""

    root: Path

    @property
    def data(self) -> DemoData:
        return DemoData(self.root / "data")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def run(self, name: str) -> Path:
        return self.root / "runs" / name

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
    return [
        Step("extract", extract, makes=folder.cache),
        Step("mine", ("mine", *cache, *mined), makes=folder.cache),
        *(_distill(folder, plan, cache) for plan in config.students),
        Step("evaluate teacher", ("evaluate", folder.teacher, "--data", str(folder.data.held_out))),
        *(
            Step(f"evaluate {plan.name}", ("evaluate", str(folder.run(plan.name)), "--data", str(folder.data.held_out)))
            for plan in config.students
        ),
    ]


def _distill(folder: DemoFolder, plan: StudentPlan, cache: tuple[str, ...]) -> Step:
    start = ("--from", str(folder.run(plan.start))) if plan.start else ("--student", plan.student)
    out = folder.run(plan.name)
    return Step(
        f"distill {plan.name}", ("distill", *cache, *start, "--out", str(out), *plan.options), makes=out / "model"
    )
