"""Processes that train together, spawned once and asked again and again; each is told what to do as a function."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from stages.distill.launched import launched_group

SILENT_SECONDS = 6.0


class Ended(Exception):
    """A process ended while it was asked; has its exit code, negative for a signal."""


class SeveralProcesses:
    """Up to `most` processes, each with one thread. Leave the context to end them.

    One that has no answer after `seconds` is killed, and has `Ended`.
    """

    def __init__(self, most: int, *, seconds: float = 60) -> None:
        self._most, self._seconds = most, seconds
        self._context = get_context("spawn")
        self._processes: dict[int, Any] = {}
        self._pipes: dict[int, Connection] = {}

    def __enter__(self) -> "SeveralProcesses":
        for rank in range(self._most):
            self._start(rank)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.join()

    def run(self, size: int, work: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """Returns what `work(group, *args, **options)` returned in each of `size` processes, or the error it raised."""
        for rank in range(size):
            if not self._processes[rank].is_alive():
                self._start(rank)
        port = _free_port()
        for rank in range(size):
            self._pipes[rank].send((rank, size, port, work, args, options))
        answers: list[Any] = []
        for rank in range(size):
            given_up = any(isinstance(answer, Ended) and answer.args == (1,) for answer in answers)
            answers.append(self._answer(rank, 2 if given_up else self._seconds))
        return answers

    def _answer(self, rank: int, seconds: float) -> Any:
        pipe, process = self._pipes[rank], self._processes[rank]
        try:
            if pipe.poll(seconds):
                return pipe.recv()
        except EOFError:
            pass
        else:
            # It may be one that was stopped, for ever.
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        return Ended(process.exitcode)

    def _start(self, rank: int) -> None:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there,), daemon=False)
        process.start()
        there.close()
        self._processes[rank], self._pipes[rank] = process, here


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            rank, size, port, work, args, options = pipe.recv()
        except EOFError:
            return
        variables = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in variables.items()})
        try:
            with launched_group(say=print, silent_seconds=SILENT_SECONDS) as group:
                answer = work(group, *args, **options)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - told to whoever asked
            answer = type(error)(*map(str, error.args))
        pipe.send(answer)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
