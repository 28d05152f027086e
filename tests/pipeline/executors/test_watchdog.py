"""A task that makes no progress ends the run with its name and its stack; a long one that makes some is left alone."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from cache_schema.errors import EnvironmentProblem
from pipeline.executors.config import ExecutorConfig
from pipeline.executors.serial import SerialExecutor
from tests.pipeline.executors import workers


def test_serial_run_that_hangs_ends_with_an_error_that_names_the_task(capfd: pytest.CaptureFixture[str]) -> None:
    executor = SerialExecutor(ExecutorConfig(stall_seconds=2))
    begun = []
    with pytest.raises(EnvironmentProblem, match=r"^1 made no progress for 2 s"):
        for outcome in executor.map(partial(workers.Hangs, (1,)), range(3)):
            begun.append(outcome.task)
    assert begun == [0]
    assert "in hang" in capfd.readouterr().err


def test_hanging_worker_is_closed_and_the_signal_handler_restored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGALRM)

    class ClosableHang(workers.Closable):
        def __call__(self, number: int) -> int:
            workers.hang()
            return number

    with pytest.raises(EnvironmentProblem, match="made no progress"):
        list(SerialExecutor(ExecutorConfig(stall_seconds=0.5)).map(partial(ClosableHang, tmp_path / "closed"), [1]))
    assert (tmp_path / "closed").exists()
    assert signal.getsignal(signal.SIGALRM) is before


def test_long_task_that_makes_progress_is_no_hang() -> None:
    executor = SerialExecutor(ExecutorConfig(stall_seconds=2))
    assert [o.value for o in executor.map(partial(workers.SlowWithPulse, 3.0), [4])] == [8]


def test_hang_in_foreign_code_that_lets_nothing_run_ends_the_process_with_the_stack() -> None:
    script = (
        "from pipeline.executors import watchdog\n"
        "from pipeline.executors.serial import SerialExecutor\n"
        "from pipeline.executors.config import ExecutorConfig\n"
        "from tests.pipeline.executors import workers\n"
        "watchdog.SECONDS_TO_END = 0.5\n"
        "list(SerialExecutor(ExecutorConfig(stall_seconds=1)).map(workers.HoldsTheInterpreter, [1]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "in __call__" in ended.stderr and "workers.py" in ended.stderr
