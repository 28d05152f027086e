"""The pipeline as real processes that can be killed, all of them at once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """Returns our environment with one thread per numeric library and no settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIPELINE_", "RAY_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def start(*args: str, log: IO[Any] | None = None, **env: str) -> subprocess.Popen[str]:
    """Starts `pipeline ARGS` as the leader of a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *args],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.DEVNULL if log else subprocess.PIPE,
        stderr=log or subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `pipeline ARGS` to its end."""
    process = start(*args, **env)
    stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)


def result_of(*args: str, **env: str) -> dict[str, Any]:
    """Returns what `pipeline ARGS --json` prints; it must end with 0."""
    done = run(*args, "--json", **env)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kills the process and all it started, as a power cut would, and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
