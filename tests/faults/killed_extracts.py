"""Program: extracts a small corpus again and again, each time with another durable operation failing, then reruns it.

    python -m tests.faults.killed_extracts FOLDER kill|ENOSPC|EDQUOT|EIO|EROFS|each [--forever] [--first N] [--step N]
    python -m tests.faults.killed_extracts FOLDER kill --compound 200

A durable operation is a folder made, a file opened for writing, written, synced, closed, renamed or removed, and a
folder synced. A failing write leaves half of its bytes behind. With --forever every operation from the n-th on fails.
`each` takes the four errors in turn.
With --views the images have further views and stored pixels. With --compound, 2 to 5 kills at random operations follow
one another before a run may finish.

Prints one JSON object: operations met, runs, and every way in which a rerun differed from the uninterrupted extract.
Forks are cheap and safe here, because this process imports no torch, no FAISS, and starts no threads before forking.
"""

import argparse
import builtins
import errno
import json
import os
import pathlib
import random
import shutil
import signal
import traceback
from dataclasses import replace
from pathlib import Path

import zarr  # noqa: F401 - imported before forking, so that not every run has to

from cache_schema import atomic, lock
from cache_schema.errors import EnvironmentProblem
from cache_schema.verify import verify_cache
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.teachers.probes import probe_images
from tests.corpora.extracts import digests_of, extract_config, run_parts
from tests.corpora.folders import contents_of

DURABLE_CALLS = ("open", "fsync", "close", "replace", "mkdir", "unlink")
ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS")
DIED, REFUSED, SURVIVED = 137, 75, 76


def config(folder: Path, cache: Path) -> ExtractConfig:
    """Returns what is extracted from the sources in `folder`: three parts."""
    return extract_config(cache, folder / "pictures", folder / "sentences.txt", part_rows=8, batch_size=8)


def extract(settings: ExtractConfig) -> None:
    """Runs an extract to its end."""
    with open_job(settings) as job:
        run_parts(job)
        job.finish()


class FailingSystem:
    """Stands for `os` where files are published: the n-th durable call kills this process, or fails."""

    def __init__(self, fault: str, at: int, *, forever: bool) -> None:
        self.fault = fault
        self.left = at
        self.forever = forever

    def install(self) -> None:
        for module in (atomic, lock, pathlib):
            module.os = self  # type: ignore[attr-defined]
        atomic.open = self.open_file  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        call = getattr(os, name)
        return self._counted(name, call) if name in DURABLE_CALLS else call

    def is_due(self) -> bool:
        self.left -= 1
        if self.fault == "kill" and self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.left == 0 or (self.forever and self.left < 0)

    def error(self) -> OSError:
        number = getattr(errno, self.fault)
        return OSError(number, os.strerror(number))

    def open_file(self, path: Path, mode: str = "r", **options: object) -> object:
        if self.is_due():
            raise self.error()
        return FailingFile(builtins.open(path, mode, **options), self)  # type: ignore[call-overload]

    def _counted(self, name: str, call):
        def counted(*args, **kwargs):
            if not self.is_due():
                return call(*args, **kwargs)
            if name == "close":
                call(*args, **kwargs)
            raise self.error()

        return counted


class FailingFile:
    """A file whose writes and close are durable calls of a `FailingSystem`."""

    def __init__(self, file, system: FailingSystem) -> None:
        self._file = file
        self._system = system

    def write(self, data) -> int:
        if self._system.is_due():
            self._file.write(data[: len(data) // 2])
            raise self._system.error()
        return self._file.write(data)

    def __enter__(self) -> "FailingFile":
        return self

    def __exit__(self, *_: object) -> None:
        is_due = self._system.is_due()
        self._file.close()
        if is_due:
            raise self._system.error()


def in_child(run) -> int:
    """Returns the exit code of `run` in a forked process, 137 when it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = run()
        except BaseException:  # noqa: BLE001 - a forked child must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return DIED if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def run_with_fault(settings: ExtractConfig, fault: str, at: int, *, forever: bool) -> int:
    system = FailingSystem(fault, at, forever=forever)
    system.install()
    try:
        extract(settings)
    except EnvironmentProblem as error:
        number = getattr(errno, fault)
        # One line that names what could not be written, why, and what to do.
        assert os.strerror(number) in str(error) and str(settings.cache) in str(error), error
        return REFUSED
    # Removing a leftover may fail in silence; so may one renewal of the lock, which is tried again.
    return 0 if system.left > 0 else SURVIVED


def stumps(cache: Path, whole: Path) -> list[str]:
    """Returns the files at final names that are not byte for byte those of the uninterrupted extract.

    Records hold seconds, and are sealed: `verify_cache` judges them.
    """
    paths = [path for path in cache.rglob("*") if path.is_file() and not path.name.startswith(".")]
    judged = [path for path in paths if path.parent.name != "records" or path.suffix == ".rows"]
    return [
        str(path)
        for path in judged
        if path.name != "lock.json" and path.read_bytes() != (whole / path.relative_to(cache)).read_bytes()
    ]


def state_of(path: Path) -> dict[str, str]:
    """Returns the digest of every array, and the SHA-256 of every file of stored pixels."""
    files = contents_of(path).items()
    return {**digests_of(path), **{name: sha256 for name, sha256 in files if name.endswith(".arrow")}}


class Trial:
    """Runs with faults, each followed by a rerun that is compared with the uninterrupted extract."""

    def __init__(self, folder: Path, fault: str, *, forever: bool, views: bool) -> None:
        self.folder, self.fault, self.forever, self.views = folder, fault, forever, views
        self.whole = folder / ("whole-views" if views else "whole")
        self.cache = folder / f"cache-{fault}-{'forever' if forever else 'once'}{'-views' if views else ''}"
        self.wrong: list[str] = []
        self.runs = self.survived = 0
        if not self.whole.exists():
            assert in_child(lambda: extract(self.settings(self.whole)) or 0) == 0
        self.expected = state_of(self.whole)

    def settings(self, cache: Path) -> ExtractConfig:
        plain = config(self.folder, cache)
        return replace(plain, views=3, store_pixels=8) if self.views else plain

    def begin(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)

    def fail_at(self, number: int) -> bool:
        """Runs with a fault at operation `number`; returns False when the run ended before."""
        settings = self.settings(self.cache)
        fault = ERRORS[number % len(ERRORS)] if self.fault == "each" else self.fault
        code = in_child(lambda: run_with_fault(settings, fault, number, forever=self.forever))
        if code == 0:
            return False
        self.runs += 1
        self.survived += code == SURVIVED
        if code not in ((DIED,) if fault == "kill" else (REFUSED, SURVIVED)):
            self.wrong.append(f"operation {number}: exit {code} instead of one clear error")
        if (self.cache / "cache.json").exists():
            self.wrong += [f"operation {number}: after the fault, {p.what}" for p in verify_cache(self.cache)]
            self.wrong += [f"operation {number}: {stump} is a stump" for stump in stumps(self.cache, self.whole)]
        return True

    def rerun(self, what: str) -> None:
        if in_child(lambda: extract(self.settings(self.cache)) or 0) != 0:
            self.wrong.append(f"{what}: the rerun failed")
        elif state_of(self.cache) != self.expected or verify_cache(self.cache):
            self.wrong.append(f"{what}: the rerun gave another cache")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("fault", choices=("kill", "each", *ERRORS))
    parser.add_argument("--forever", action="store_true")
    parser.add_argument("--views", action="store_true")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--compound", type=int, default=0)
    args = parser.parse_args()
    probe_images()  # kept, so that not every run has to draw them
    trial = Trial(args.folder, args.fault, forever=args.forever, views=args.views)
    number = args.first
    if args.compound:
        rng = random.Random(args.first)
        for _ in range(args.compound):
            trial.begin()
            numbers = [rng.randint(1, 40 if at else 150) for at in range(rng.randint(2, 5))]
            for number in numbers:
                trial.fail_at(number)
            trial.rerun(f"kills {numbers}")
        number = args.compound + 1
    else:
        while True:
            trial.begin()
            if not trial.fail_at(number):
                break
            trial.rerun(f"operation {number}")
            number += args.step
    print(
        json.dumps(
            {"operations": number - 1, "runs": trial.runs, "survived": trial.survived, "wrong": trial.wrong[:20]}
        )
    )


if __name__ == "__main__":
    main()
