"""Runs the pipeline's commands as a user does, in processes of their own, and takes their time and memory."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SECONDS_BETWEEN_SAMPLES = 0.1


@dataclass(frozen=True)
class Ran:
    """A command that ended well: the object it printed, its wall time, and the peak memory of its process tree.

    `peak_bytes` is the largest sum of proportional set sizes (shared pages counted once) seen; 0 if not sampled.
    """

    result: dict[str, Any]
    seconds: float
    peak_bytes: int = 0


def run_pipeline(*arguments: object, sample_memory: bool = False) -> Ran:
    """Returns what `pipeline ARGUMENTS --json --quiet` gives, run in the project's folder."""
    argv = [sys.executable, "-m", "pipeline", *map(str, arguments), "--json", "--quiet"]
    return run(argv, sample_memory=sample_memory)


def run(argv: Sequence[str], *, sample_memory: bool = False, parse: bool = True) -> Ran:
    """Returns how `argv` ran; raises `CalledProcessError` when it fails. Its stderr is ours."""
    start = time.perf_counter()
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        peak = _peak_bytes(process) if sample_memory else 0
        printed, _ = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv, printed)
    return Ran(json.loads(printed) if parse else {}, seconds, peak)


def _peak_bytes(process: "subprocess.Popen[bytes]") -> int:
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_proportional_bytes, _tree(process.pid))))
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    return peak


def _tree(pid: int) -> list[int]:
    """Returns `pid` and its descendants, as far as they still live."""
    found = [pid]
    for parent in found:
        try:
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue
    return found


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def median(values: Sequence[float]) -> float:
    """Returns the median, rounded to three digits after the point."""
    return round(statistics.median(values), 3)


def print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Prints `rows` under `columns`, on stderr, for people; the JSON on stdout is the result."""
    from pipeline.output import table

    print("\n".join(table(rows, columns)), file=sys.stderr)
