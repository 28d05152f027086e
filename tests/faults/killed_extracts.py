"""Program: extracts a small corpus again and again, each time killed at another durable operation, then run to its end.

    python -m tests.faults.killed_extracts FOLDER kill|ENOSPC|EIO|EROFS [FIRST [STEP]]

Prints one JSON object: operations met, runs, and every way in which a rerun differed from the uninterrupted extract.
Forks are cheap and safe here, because this process imports no torch, no FAISS, and starts no threads before forking.
"""

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import zarr  # noqa: F401 - imported before forking, so that not every run has to

import tests.stub_teacher  # noqa: F401 - likewise
from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.errors import EnvironmentProblem
from cache_schema.verify import verify_cache
from stages.extract import open_job
from stages.extract_config import ExtractConfig

DURABLE_CALLS = ("fsync", "replace", "open")
DIED, REFUSED = 137, 75


def config(folder: Path, cache: Path) -> ExtractConfig:
    return ExtractConfig(
        cache=cache,
        images=(str(folder / "pictures"),),
        texts=(str(folder / "sentences.txt"),),
        teacher="python:tests.stub_teacher:make?dim=8",
        part_rows=8,
        batch_size=8,
        decode_workers=0,
        index=False,
    )


def extract(settings: ExtractConfig) -> None:
    with open_job(settings) as job:
        if job.tasks:
            with job.make_worker() as worker:
                for task in job.tasks:
                    worker(task)
        job.finish()


class FailingSystem:
    """Lets the n-th durable call of `atomic.py` kill this process, or fail with an error number."""

    def __init__(self, fault: str, at: int) -> None:
        self.fault = fault
        self.left = at

    def __getattr__(self, name: str) -> object:
        call = getattr(os, name)
        return self._counted(call) if name in DURABLE_CALLS else call

    def _counted(self, call):
        def counted(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                if self.fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(getattr(errno, self.fault), os.strerror(getattr(errno, self.fault)))
            return call(*args, **kwargs)

        return counted


def in_child(run) -> int:
    """Returns the exit code of `run` in a forked process, 137 when it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = run()
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return DIED if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def run_with_fault(settings: ExtractConfig, fault: str, at: int) -> int:
    system = FailingSystem(fault, at)
    atomic.os = system  # type: ignore[assignment]
    try:
        extract(settings)
    except EnvironmentProblem:
        return REFUSED
    return 0 if system.left > 0 else 1


def digests(path: Path) -> list[str]:
    cache = Cache.open(path)
    return [cache.array(modality).digest() for modality in cache.modalities]


def main() -> None:
    folder, fault = Path(sys.argv[1]), sys.argv[2]
    at, step = (int(value) for value in (*sys.argv[3:], 1, 1)[:2]) if len(sys.argv) < 5 else map(int, sys.argv[3:5])
    cache = folder / f"cache-{fault}"
    in_child(lambda: extract(config(folder, folder / "whole")) or 0)
    whole = digests(folder / "whole")
    wrong: list[str] = []
    runs = 0
    while True:
        shutil.rmtree(cache, ignore_errors=True)
        number = at
        code = in_child(lambda number=number: run_with_fault(config(folder, cache), fault, number))
        if code == 0:
            break
        runs += 1
        if code not in (DIED, REFUSED):
            wrong.append(f"operation {at}: exit {code} instead of a clear error")
        if (cache / "cache.json").exists():
            problems = [problem.what for problem in verify_cache(cache)]
            wrong += [f"operation {at}: after the fault, {what}" for what in problems]
        if in_child(lambda: extract(config(folder, cache)) or 0) != 0:
            wrong.append(f"operation {at}: the rerun failed")
        elif digests(cache) != whole:
            wrong.append(f"operation {at}: the rerun gave another digest")
        at += step
    print(json.dumps({"operations": at - 1, "runs": runs, "wrong": wrong}))


if __name__ == "__main__":
    main()
