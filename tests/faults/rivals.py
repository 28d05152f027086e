"""Program: several extracts on one cache, some of them killed, stopped or continued; only one writes at any time.

    python -m tests.faults.rivals FOLDER --rounds 200

The rounds take turns: 2 at once; 8 at once; the holder of the lock killed, another one started; the holder stopped,
another one takes over, the first one continued (a zombie); a polite signal at a random time; a verifier that loops
while an extract is killed and started again. Every round ends with a run that must end with 0, and one digest.

Prints one JSON object. Forks are cheap and safe here: this process starts no threads and imports no torch.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import zarr  # noqa: F401 - imported before forking, so that not every run has to

import pipeline.commands.extract  # noqa: F401 - likewise
from cache_schema import atomic, lock
from cache_schema.errors import PipelineError
from cache_schema.verify import verify_cache
from pipeline import signals
from pipeline.cli import run
from stages.extract import admission
from stages.extract.job import open_job  # noqa: F401 - likewise
from stages.teachers.probes import probe_images
from tests.corpora.extracts import digests_of
from tests.corpora.small_corpus import write_least_sources
from tests.corpora.stub_teacher import stub

HEARTBEAT_SECONDS, STALE_AFTER_SECONDS = 0.1, 0.6
SECONDS_TO_SEE_THE_LOCK = 2.0
SAYS_WHO = re.compile(r"is being written by process \d+ on \S+|is no longer held by this process")


class NotingSystem:
    """Stands for `os` where files are published, and notes every record that is."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)
        if target.parent.name == "records" and target.suffix == ".json":
            with open(self._log, "a") as log:
                log.write(f"{target}\n")


class Rivals:
    """Extracts in forked processes on one cache at a time, and what became of them."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.cache = folder / "cache"
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.expected: dict[str, str] = {}

    def args(self, seconds_per_batch: float = 0.0) -> list[str]:
        teacher = stub(seconds_per_batch=seconds_per_batch)
        texts = ["--texts", str(self.folder / "sentences.txt"), "--texts", str(self.folder / "more.txt")]
        sources = ["--images", str(self.folder / "pictures"), *texts]
        rows = ["--part-rows", "4", "--batch-size", "4", "--decode-workers", "0", "--no-index", "--quiet"]
        return ["extract", "--cache", str(self.cache), "--teacher", teacher, *sources, *rows]

    def start(self, seconds_per_batch: float = 0.0) -> int:
        """Starts an extract and returns its process id."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                log = os.open(self.folder / f"{os.getpid()}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(log, 1)
                os.dup2(log, 2)
                atomic.os = NotingSystem(self.folder / "commits")  # type: ignore[assignment]
                lock.HEARTBEAT_SECONDS, lock.STALE_AFTER_SECONDS = HEARTBEAT_SECONDS, STALE_AFTER_SECONDS
                admission.SECONDS_TO_SEE_THE_LOCK = SECONDS_TO_SEE_THE_LOCK
                signals.install()
                code = run(self.args(seconds_per_batch))
            except BaseException:  # noqa: BLE001 - a forked child must not go on as its parent
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        return pid

    def wait(self, pid: int, allowed: tuple[int, ...]) -> int:
        """Waits for an extract; returns its exit code, negative for a signal. Any but the allowed ones is wrong."""
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        path = self.folder / f"{pid}.err"
        said = path.read_text() if path.exists() else ""
        if code not in allowed or "Traceback" in said or (code == 4 and not SAYS_WHO.search(said)):
            self.wrong.append(f"{self.what}: exit {code}: {said[-300:]}")
        self.counts[f"exit {code}"] += 1
        path.unlink(missing_ok=True)
        return code

    def begin(self, what: str) -> None:
        self.what = what
        shutil.rmtree(self.cache, ignore_errors=True)
        (self.folder / "commits").write_text("")
        self.counts[what] += 1

    def end(self) -> None:
        """Finishes the cache without anybody's help, and judges it."""
        self.wait(self.start(), (0,))
        digests = digests_of(self.cache)
        self.expected = self.expected or digests
        if digests != self.expected:
            self.wrong.append(f"{self.what}: another digest")
        self.wrong += [f"{self.what}: {p.where}: {p.what}" for p in verify_cache(self.cache)]
        commits = Counter((self.folder / "commits").read_text().split())
        self.counts["commits"] += commits.total()
        self.counts["double commits"] += commits.total() - len(commits)

    def wait_for_lock(self, pid: int) -> None:
        """Waits until the extract holds the lock, and then for a random while."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if json.loads((self.cache / "lock.json").read_text())["pid"] == pid:
                    break
            except (OSError, ValueError):
                pass
            time.sleep(0.002)
        time.sleep(self.rng.uniform(0, 0.3))


def at_once(rivals: Rivals, number: int) -> None:
    rivals.begin(f"{number} at once")
    pids = [rivals.start(0.02) for _ in range(number)]
    codes = [rivals.wait(pid, (0, 4)) for pid in pids]
    if 0 not in codes:
        rivals.wrong.append(f"{rivals.what}: nobody finished: {codes}")
    rivals.end()


def holder_killed(rivals: Rivals) -> None:
    rivals.begin("holder killed")
    pid = rivals.start(0.05)
    rivals.wait_for_lock(pid)
    os.kill(pid, signal.SIGKILL)
    rivals.wait(pid, (0, -signal.SIGKILL))
    rivals.end()


def zombie(rivals: Rivals) -> None:
    rivals.begin("zombie")
    first = rivals.start(0.05)
    rivals.wait_for_lock(first)
    os.kill(first, signal.SIGSTOP)
    second = rivals.start(0.02)
    time.sleep(rivals.rng.uniform(0, 2.0))
    os.kill(first, signal.SIGCONT)
    codes = rivals.wait(second, (0, 4)), rivals.wait(first, (0, 4))
    rivals.counts["zombies fenced off"] += codes[1] == 4
    if 0 not in codes:
        rivals.wrong.append(f"zombie: nobody finished: {codes}")
    rivals.end()


def polite_signal(rivals: Rivals) -> None:
    rivals.begin("polite signal")
    number = rivals.rng.choice((signal.SIGINT, signal.SIGTERM))
    pid = rivals.start(0.05)
    rivals.wait_for_lock(pid)
    begun = time.monotonic()
    os.kill(pid, number)
    rivals.wait(pid, (0, 128 + number))
    rivals.counts["slower than 30 s"] += time.monotonic() - begun > 30
    rivals.end()


def watched(rivals: Rivals) -> None:
    rivals.begin("watched")
    for _ in range(3):
        pid = rivals.start(0.02)
        deadline = time.monotonic() + rivals.rng.uniform(0.2, 1.0)
        while time.monotonic() < deadline:
            if (rivals.cache / "cache.json").exists():
                rivals.counts["observations"] += 1
                try:
                    seen = [f"{problem.where}: {problem.what}" for problem in verify_cache(rivals.cache)]
                except PipelineError as error:
                    seen = [str(error)]
                rivals.counts["violations"] += bool(seen)
                rivals.wrong += [f"seen while it was written: {what}" for what in seen]
        os.kill(pid, signal.SIGKILL)
        rivals.wait(pid, (0, -signal.SIGKILL))
    rivals.end()


ROUNDS: tuple[Callable[[Rivals], None], ...] = (
    lambda rivals: at_once(rivals, 2),
    holder_killed,
    zombie,
    polite_signal,
    watched,
    lambda rivals: at_once(rivals, 8),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    probe_images()  # kept, so that not every run has to draw them
    write_least_sources(args.folder)
    rivals = Rivals(args.folder, random.Random(args.seed))
    for number in range(args.rounds):
        ROUNDS[number % len(ROUNDS)](rivals)
    print(json.dumps({"rounds": args.rounds, **rivals.counts, "wrong": rivals.wrong[:20]}))


if __name__ == "__main__":
    main()
