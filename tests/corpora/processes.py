"""The pipeline, and programs of the tests, as real processes: started, awaited, and killed with all they started."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """Returns our environment with one thread per numeric library and no settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIPELINE_", "RAY_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def start(*args: object, log: IO[Any] | None = None, cwd: Path = ROOT, **env: str) -> subprocess.Popen[str]:
    """Starts `pipeline ARGS` as the leader of a process group of its own; `log` gets stderr, and stdout is lost."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, args)],
        cwd=cwd,
        env=environment(**env),
        stdout=subprocess.DEVNULL if log else subprocess.PIPE,
        stderr=log or subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*args: object, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `pipeline ARGS` to its end."""
    process = start(*args, cwd=cwd, **env)
    stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def result_of(*args: object, **env: str) -> dict[str, Any]:
    """Returns what `pipeline ARGS --json` prints; it must end with 0."""
    done = run(*args, "--json", **env)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def figures_of(program: str, *args: object) -> dict[str, Any]:
    """Returns the JSON object that `python -m PROGRAM ARGS` prints last; it must end with 0 and show no traceback."""
    command = [sys.executable, "-m", program, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def wait_for(
    condition: Callable[[], object], process: "subprocess.Popen[str] | None" = None, *, seconds: float = 120
) -> None:
    """Waits until `condition` holds; fails when `process` ends before, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None:
            assert process.poll() is None, f"it ended with {process.returncode}: {process.communicate()}"
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.005)


def records_of(cache: Path) -> list[Path]:
    """Returns the records of all parts that are committed, which need be no cache yet."""
    return sorted(cache.glob("*/arrays/*/records/*.json"))


def kill_group(process: "subprocess.Popen[str]") -> None:
    """Kills the process and all it started, as a power cut would, and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
