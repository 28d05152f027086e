"""One writer at a time: a lock file with a heartbeat, and a token that fences off a holder who was silent too long.

No clock of another machine is ever believed. A lock is stale when its holder was a process of this machine that no
longer lives, or when its heartbeat does not change while this process watches it for `STALE_AFTER_SECONDS`.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cache_schema import atomic
from cache_schema.atomic import Fence
from cache_schema.errors import DamagedError, LockedError
from cache_schema.json_file import Json, read_json

HEARTBEAT_SECONDS = 2.0
STALE_AFTER_SECONDS = 12.0


class WriterLock:
    """Context manager that holds the lock file at `path`; `what` names the protected thing in messages.

    Entering raises `LockedError` with the holder's pid and host when another live process holds it; a stale lock is
    taken over without anybody's help. While held, a thread renews the heartbeat. `fence` goes to every writer.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what
        self.fence = Fence(path, secrets.token_hex(16))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        watched = self._take()
        if watched is not None:
            self._wait_for_silence(watched)
            if self._take(silent=watched) is not None:
                raise self._refusal(self._holder())
        self._thread = threading.Thread(target=self._renew, name="lock-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            with self._guard():
                if self._holder().get("token") == self.fence.token:
                    atomic.remove_file(self.path)
        except atomic.EnvironmentProblem:
            # What went wrong inside says more; the lock of a process that has ended is stale.
            if error is None:
                raise

    def _take(self, silent: dict[str, Json] | None = None) -> dict[str, Json] | None:
        """Takes the lock when it is free, stale, or still as `silent` showed it; else returns what it holds."""
        with self._guard():
            holder = self._holder()
            if holder and holder != silent and not _is_dead(holder):
                return holder
            self._write(beat=0)
            return None

    def _wait_for_silence(self, watched: dict[str, Json]) -> None:
        deadline = time.monotonic() + STALE_AFTER_SECONDS
        while time.monotonic() < deadline:
            holder = self._holder()
            if holder != watched and holder:
                raise self._refusal(holder)
            if not holder:
                return
            time.sleep(0.1)

    def _refusal(self, holder: dict[str, Json]) -> LockedError:
        return LockedError(
            f"{self.what} is being written by process {holder.get('pid')} on {holder.get('host')}: "
            "wait until it is done, or stop it and run again"
        )

    def _holder(self) -> dict[str, Json]:
        try:
            holder = read_json(self.path)
        except DamagedError:
            return {}
        return holder if isinstance(holder, dict) else {}

    def _write(self, beat: int) -> None:
        holder = {"token": self.fence.token, "beat": beat, "pid": os.getpid(), "started": _process_start(os.getpid())}
        atomic.publish_json(self.path, {**holder, "host": socket.gethostname(), "process_space": _process_space()})

    def _renew(self) -> None:
        beat = 0
        while not self._stop.wait(HEARTBEAT_SECONDS):
            beat += 1
            try:
                with self._guard():
                    self.fence.check()
                    self._write(beat)
            except (LockedError, OSError, atomic.EnvironmentProblem):
                # Writers learn the same from their fence, where it can be reported; a full disk passes or stops them.
                continue

    @contextmanager
    def _guard(self) -> Iterator[None]:
        # Makes "read the lock, then replace it" one step among the processes that share this file system.
        with atomic.held(self.path.with_name(f".{self.path.name}.guard")):
            yield


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: a process of a host; `is_here` when that is a process of this machine, which lives."""

    pid: int
    host: str
    is_here: bool


def holder_of(path: Path) -> Holder | None:
    """Returns who holds the lock file at `path`; None when nobody does, or a process of this machine that has ended.

    Changes nothing and does not wait, so that a holder on another machine may have ended too.
    """
    try:
        holder = read_json(path)
    except DamagedError:
        return None
    if not isinstance(holder, dict) or _is_dead(holder):
        return None
    is_here = holder.get("process_space") == _process_space()
    return Holder(holder.get("pid", 0), str(holder.get("host")), is_here)


def _is_dead(holder: dict[str, Json]) -> bool:
    """Returns whether the holder, a process of this machine, has ended; its start time guards against a reused pid."""
    pid = holder.get("pid")
    if holder.get("process_space") != _process_space() or not isinstance(pid, int):
        return False
    return _process_start(pid) != holder.get("started")


def _process_space() -> str:
    """Returns what tells whether a pid means the same process here: containers may share a host name, never this."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _process_start(pid: int) -> str | None:
    """Returns the start time of process `pid` in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _alive_without_proc(pid)
    return None if fields[0] == "Z" else fields[19]


def _alive_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
