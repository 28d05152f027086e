"""The folder of a distillation run: where its files are, whose they are, and what is in run.json.

RUN/
  run.json        sealed: what the run was asked to do, by which teacher and arrays, and its result once it has ended
  lock.json       while one process trains
  metrics.jsonl   one line per step: losses, learning rate, gradient norm; equal for equal runs, bit for bit, on a CPU
  speed.jsonl     one line per step: how fast it went; never the same twice
  tensorboard/    both, for looking at
  checkpoints/    see `stages.checkpoint`
  probes/         what the teacher made of the probes, copied from the cache
  model/          the trained student, see `stages.export`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_schema import atomic
from cache_schema.errors import MismatchError, RefusedError, UsageError
from cache_schema.json_file import Json, fingerprint_of, read_sealed, seal
from cache_schema.layout import Modality
from cache_schema.lock import WriterLock
from cache_schema.recipe import differences

RUN_FORMAT = 1
_OURS = frozenset(
    {"run.json", "lock.json", "metrics.jsonl", "speed.jsonl", "tensorboard", "checkpoints", "probes", "model"}
)
_SUFFIXES_OF_OURS = (".json", ".jsonl", ".safetensors", ".npz")


@dataclass(frozen=True)
class RunFolder:
    """The paths of everything in the run at `root`. Nothing is created or read here."""

    root: Path

    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def speed(self) -> Path:
        return self.root / "speed.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        return self.root / "model"

    def probes(self, modality: Modality) -> Path:
        return self.root / "probes" / f"{modality}.npz"

    def lock(self) -> WriterLock:
        """Returns the context manager that makes this process the only one that trains here."""
        return WriterLock(self.root / "lock.json", f"run {self.root}")


@dataclass(frozen=True)
class RunRecord:
    """What run.json says.

    Attributes:
        asked: JSON of everything that changes the student; its fingerprint names the run.
        about: JSON beside it: paths, specifications, tools, and the times the run was resumed.
        result: JSON of a run that has ended; None before.
    """

    asked: Mapping[str, Json]
    about: Mapping[str, Json]
    result: Mapping[str, Json] | None = None

    @property
    def fingerprint(self) -> str:
        """Returns the SHA-256 over `asked`, as 64 hexadecimal digits."""
        return fingerprint_of(dict(self.asked))


def open_folder(root: Path) -> RunFolder:
    """Returns the run folder at `root`, created when it is missing.

    Raises:
        RefusedError: `root` holds something that is no run of ours; nothing was touched.
        UsageError: `root` is a file.
        EnvironmentProblem: it cannot be created.
    """
    folder = RunFolder(root.absolute())
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file, not a folder for a run: choose another --out")
    names = {path.name for path in root.iterdir() if not path.name.startswith(".")} if root.exists() else set()
    if names - _OURS or (names - {"lock.json"} and not folder.run_json.exists()):
        strange = sorted(names - _OURS) or sorted(names)
        raise RefusedError(
            f"{root} exists and is not a distillation run (it holds {', '.join(strange[:3])}): choose another --out; "
            "nothing was touched"
        )
    atomic.make_folder(folder.root)
    return folder


def write_record(folder: RunFolder, record: RunRecord, *, fence: atomic.Fence) -> None:
    """Publishes run.json."""
    value = {
        "format": RUN_FORMAT,
        "asked": dict(record.asked),
        "about": dict(record.about),
        "result": None if record.result is None else dict(record.result),
    }
    atomic.publish_json(folder.run_json, seal(value), fence=fence)


def read_record(folder: RunFolder) -> RunRecord:
    """Returns what run.json says.

    Raises:
        UsageError: there is no run.
        DamagedError: run.json was changed or cut.
        RefusedError: it was written by a newer version.
    """
    if not folder.run_json.exists():
        raise UsageError(f"{folder.root} holds no distillation run (no run.json): make one with `pipeline distill`")
    value = read_sealed(folder.run_json)
    if value.get("format") != RUN_FORMAT:
        raise RefusedError(
            f"{folder.root} has run format {value.get('format')}, this version reads {RUN_FORMAT}: upgrade the pipeline"
        )
    return RunRecord(value["asked"], value["about"], value["result"])


def require_same(folder: RunFolder, now: RunRecord, then: RunRecord) -> None:
    """Raises `MismatchError` with every differing field when a run is to be resumed that was asked something else."""
    found = differences(dict(now.asked), dict(then.asked))
    if found:
        shown = "; ".join(f"{field}: {_short(ours)} now, {_short(theirs)} then" for field, ours, theirs in found[:12])
        raise MismatchError(
            f"run {folder.root} was asked something else ({shown}): repeat its options to resume it, use another "
            "--out, or start over with --fresh"
        )


def forget(folder: RunFolder, *, fence: atomic.Fence) -> None:
    """Removes the files of an earlier run, run.json last; files that are not ours stay.

    run.json says whose folder this is, so a crash in between leaves something that `forget` can be asked again.
    """
    fence.check()
    places = [folder.model, folder.checkpoints, folder.tensorboard, folder.root / "probes"]
    for path in [path for place in places if place.is_dir() for path in _files_of_ours(place)]:
        atomic.remove_file(path)
    for path in (folder.metrics, folder.speed, folder.run_json):
        if path.exists():
            atomic.remove_file(path)


def _files_of_ours(place: Path) -> Sequence[Path]:
    return [
        path
        for path in sorted(place.iterdir())
        if path.is_file() and (path.suffix in _SUFFIXES_OF_OURS or path.name.startswith("events.out.tfevents."))
    ]


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
