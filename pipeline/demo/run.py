"""Runs the demo: the data, then the pipeline's own commands in processes of their own, then the report."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cache_schema import atomic
from cache_schema.errors import EnvironmentProblem, PartsFailed, PipelineError, RefusedError, UsageError
from cache_schema.json_file import read_json
from pipeline.demo.data import make_data
from pipeline.demo.report import write_report
from pipeline.demo.steps import DemoConfig, DemoFolder, Step, steps_of
from pipeline.progress import open_progress
from pipeline.report import print_note

# A command that fails has printed its own message; the demo ends with the same exit code.
_ERRORS: dict[int, type[PipelineError]] = {2: UsageError, 3: PartsFailed, 4: RefusedError}


def run_demo(out: Path, *, quiet: bool = False, config: DemoConfig | None = None) -> dict[str, Any]:
    """Runs whatever of the demo is not done yet, writes report.json and report.html into `out`, returns the former.

    After Ctrl-C or a crash a rerun goes on: finished steps are not done again, an unfinished one is resumed.

    Args:
        out: folder for all of it.
        quiet: show no progress.
        config: what to do; None for the demo as it is meant.

    Returns:
        JSON: see `pipeline.demo.report.write_report`.

    Raises:
        MismatchError: `out` holds the data of another demo.
        PipelineError: a command failed; of the kind that ends the demo with the same exit code.
        EnvironmentProblem: a package of the demo is missing, or the disk is full.
    """
    config = config or DemoConfig()
    folder = DemoFolder(out)
    _say(f"the demo's pictures and sentences, in {folder.data.path}", quiet)
    done = {"data": _make_data(folder, config, quiet)}
    for step in steps_of(folder, config):
        done[step.name] = _run_step(folder, step, quiet)
    _say(f"the report, in {out / 'report.html'}", quiet)
    return write_report(folder, config, done)


def _make_data(folder: DemoFolder, config: DemoConfig, quiet: bool) -> dict[str, Any]:
    note = _Note(folder, "data", asdict(config.data))
    if note.result is None or not folder.data.summary.exists():
        with note.timed(), open_progress("data", quiet=quiet) as progress:
            note.result = make_data(folder.data.path, config.data, progress=progress)
    return note.stored


def _run_step(folder: DemoFolder, step: Step, quiet: bool) -> dict[str, Any]:
    _say(f"$ {step.command_line}", quiet)
    note = _Note(folder, step.name, list(step.arguments))
    if note.result is not None and (step.makes is None or step.makes.exists()):
        _say("done before", quiet)
        return note.stored
    with note.timed():
        note.result = _call(step, quiet)
    return note.stored


def _call(step: Step, quiet: bool) -> dict[str, Any]:
    """Runs the command in a process of its own and returns the object that it prints."""
    argv = [sys.executable, "-m", "pipeline", *step.arguments, "--json", *(["--quiet"] if quiet else [])]
    # A session of its own: Ctrl-C then reaches the command once, through us, and it can save its state.
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            printed, _ = process.communicate()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
    if process.returncode != 0:
        raise _ERRORS.get(process.returncode, EnvironmentProblem)(
            f"`{step.command_line}` ended with exit code {process.returncode}: see its own message above; run the demo "
            "again to go on from there"
        )
    result: dict[str, Any] = json.loads(printed)
    return result


class _Note:
    """What is remembered of a step: what was asked, the seconds of all attempts, and its result once it has one."""

    def __init__(self, folder: DemoFolder, name: str, asked: Any) -> None:
        self._path = folder.step(name)
        self._asked = asked
        there = read_json(self._path) if self._path.exists() else {}
        same = there.get("asked") == asked
        self.result: dict[str, Any] | None = there["result"] if same else None
        self._seconds: float = there["seconds"] if same else 0.0

    @property
    def stored(self) -> dict[str, Any]:
        return {"asked": self._asked, "seconds": round(self._seconds, 1), "result": self.result}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Stores the note at the end of the block, with its seconds added, also when the block is cut short."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - start
            atomic.make_folder(self._path.parent)
            atomic.publish_json(self._path, self.stored)


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print_note(text)
