"""Runs the demo: the data, then the pipeline's own commands in processes of their own, then the report."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from cache_schema import atomic
from cache_schema.errors import EnvironmentProblem, PartsFailed, PipelineError, RefusedError, UsageError
from cache_schema.json_file import read_json
from pipeline.demo.data import make_data
from pipeline.demo.imagenet import checkpoint_of
from pipeline.demo.report import write_report
from pipeline.demo.steps import DemoConfig, DemoFolder, Step, steps_of
from pipeline.output import print_note
from pipeline.progress import open_progress
from stages.files.apart import require_outside_caches

# A command that fails has printed its own message; the demo ends with the same exit code.
_POLL_SECONDS = 0.05

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
        UsageError: `out` is a cache, or inside one.
        MismatchError: `out` holds the data of another demo.
        PipelineError: a command failed; of the kind that ends the demo with the same exit code.
        EnvironmentProblem: a package of the demo is missing, or the disk is full.
    """
    config = config or DemoConfig()
    folder = DemoFolder(out)
    require_outside_caches(folder.data.path, "--out")
    _say(f"the demo's pictures and sentences, in {folder.data.path}", quiet)
    done = {"data": _make_data(folder, config, quiet)}
    _write_weights(folder, config)
    for steps in _together(steps_of(folder, config)):
        done |= _run_steps(folder, steps, quiet)
    _say(f"the report, in {out / 'report.html'}", quiet)
    return write_report(folder, config, done)


def _make_data(folder: DemoFolder, config: DemoConfig, quiet: bool) -> dict[str, Any]:
    note = _Note(folder, "data", asdict(config.data))
    if note.result is None or not folder.data.summary.exists():
        with note.timed(), open_progress("data", quiet=quiet) as progress:
            note.result = make_data(folder.data.path, config.data, progress=progress)
    return note.stored


def _write_weights(folder: DemoFolder, config: DemoConfig) -> None:
    """Writes the weights that students begin with, unless they are there, as a user's own checkpoint would be."""
    for architecture in {plan.weights for plan in config.students if plan.weights}:
        path = folder.weights(architecture)
        if not path.exists():
            atomic.make_folder(path.parent)
            atomic.publish_bytes(path, checkpoint_of(architecture))


def _together(steps: list[Step]) -> list[list[Step]]:
    """Returns the steps in groups, each of steps that run side by side."""
    groups: list[list[Step]] = []
    for step in steps:
        if step.beside_previous:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _run_steps(folder: DemoFolder, steps: list[Step], quiet: bool) -> dict[str, Any]:
    """Runs those of the steps that are not done yet, side by side, and returns the notes of all."""
    notes = {step.name: _Note(folder, step.name, list(step.arguments)) for step in steps}
    pending: list[Step] = []
    for step in steps:
        _say(f"$ {step.command_line}" + (" &" if step is not steps[-1] else ""), quiet)
        if notes[step.name].result is not None and (step.makes is None or step.makes.exists()):
            _say("done before", quiet)
        else:
            pending.append(step)
    with ExitStack() as stack:
        # Only the first one draws its progress: two bars would write over each other.
        running = {
            step.name: (
                step,
                stack.enter_context(notes[step.name].timed()),
                stack.enter_context(_command(step, quiet=q)),
            )
            for step, q in zip(pending, chain((quiet,), repeat(True)), strict=False)
        }
        while running:
            time.sleep(_POLL_SECONDS)
            for name, (step, stop_clock, process) in list(running.items()):
                if process.poll() is not None:
                    notes[name].result = _result_of(step, process)
                    stop_clock()
                    del running[name]
    return {name: note.stored for name, note in notes.items()}


@contextmanager
def _command(step: Step, *, quiet: bool) -> Iterator["subprocess.Popen[bytes]"]:
    """Starts the command in a process of its own; leaving early, it gets Ctrl-C and the time to save its state."""
    argv = [sys.executable, "-m", "pipeline", *step.arguments, "--json", *(["--quiet"] if quiet else [])]
    # A session of its own: Ctrl-C then reaches the command once, through us.
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.communicate()


def _result_of(step: Step, process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Returns the object that an ended command printed; raises the error that its exit code stands for."""
    printed, _ = process.communicate()
    if process.returncode != 0:
        raise _ERRORS.get(process.returncode, EnvironmentProblem)(
            f"`{step.command_line}` ended with exit code {process.returncode}: see its own message above; run the demo "
            "again to go on from there"
        )
    result: dict[str, Any] = json.loads(printed)
    return result


class _Note:
    """The memory of a step: its request, the seconds of all attempts, and its result once it has one."""

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
    def timed(self) -> Iterator[Callable[[], None]]:
        """Adds the seconds of the block and stores the note at its end, also when it is cut short.

        Gives a function that stops the clock earlier.
        """
        start = time.monotonic()
        stopped: list[float] = []
        try:
            yield lambda: stopped.append(time.monotonic())
        finally:
            self._seconds += (stopped or [time.monotonic()])[0] - start
            atomic.make_folder(self._path.parent)
            atomic.publish_json(self._path, self.stored)


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print_note(text)
