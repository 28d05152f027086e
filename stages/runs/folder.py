"""The folder of a distillation run: where its files are, whose they are, and what is in run.json.

RUN/
  run.json        sealed: what the run was asked to do, by which teacher and arrays, and its result once it has ended
  lock.json       while one process trains
  metrics.jsonl   one line per step: losses, learning rate, gradient norm; equal for equal runs, bit for bit, on a CPU
  speed.jsonl     one line per step: how fast it went; never the same twice
  held_out.jsonl  one line per measurement of images that are never trained on, and of the probe
  tensorboard/    all of these, for looking at
  checkpoints/    see `stages.runs.checkpoint`
  probes/         what the teacher made of the probes, copied from the cache
  model/          the trained student, see `stages.export.model_folder`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_schema import atomic
from cache_schema.errors import RefusedError, UsageError
from cache_schema.layout import Modality
from cache_schema.lock import WriterLock
from stages.files.apart import require_outside_caches

_OURS = frozenset(
    {
        *("run.json", "lock.json", "metrics.jsonl", "speed.jsonl", "held_out.jsonl"),
        *("tensorboard", "checkpoints", "probes", "model"),
    }
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
    def held_out(self) -> Path:
        return self.root / "held_out.jsonl"

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


def open_folder(root: Path) -> RunFolder:
    """Returns the run folder at `root`, created when it is missing.

    Raises:
        RefusedError: `root` holds something that is no run of ours; nothing was touched.
        UsageError: `root` is a file, or would be inside a cache.
        EnvironmentProblem: it cannot be created.
    """
    folder = RunFolder(root.absolute())
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file, not a folder for a run: choose another --out")
    if not folder.run_json.exists():
        require_outside_caches(root, "--out")
    names = {path.name for path in root.iterdir() if not path.name.startswith(".")} if root.exists() else set()
    if names - _OURS or (names - {"lock.json"} and not folder.run_json.exists()):
        strange = sorted(names - _OURS) or sorted(names)
        raise RefusedError(
            f"{root} exists and is not a distillation run (it holds {', '.join(strange[:3])}): choose another --out; "
            "nothing was touched"
        )
    atomic.make_folder(folder.root)
    return folder


def forget(folder: RunFolder, *, fence: atomic.Fence) -> None:
    """Removes the files of an earlier run, run.json last; files that are not ours stay.

    run.json says whose folder this is, so a crash in between leaves something that `forget` can be asked again.
    """
    fence.check()
    places = [folder.model, folder.checkpoints, folder.tensorboard, folder.root / "probes"]
    for path in [path for place in places if place.is_dir() for path in _files_of_ours(place)]:
        atomic.remove_file(path)
    for path in (folder.metrics, folder.speed, folder.held_out, folder.run_json):
        if path.exists():
            atomic.remove_file(path)


def _files_of_ours(place: Path) -> Sequence[Path]:
    return [
        path
        for path in sorted(place.iterdir())
        if path.is_file() and (path.suffix in _SUFFIXES_OF_OURS or path.name.startswith("events.out.tfevents."))
    ]
