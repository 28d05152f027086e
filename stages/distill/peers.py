"""Which of the processes that train together still live, and which one is gone when something does not answer.

Every process beats in a store that all of them reach, whatever its main thread does. A connection that breaks says that
somebody is gone but not who; the beats do. A process that is stopped, or whose machine is gone, breaks no connection
for a long time: the beats tell that too, and end this process when its main thread waits in vain.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from torch.distributed import Store

from cache_schema.errors import EnvironmentProblem

BEAT_SECONDS = 1.0
GONE_AFTER_SECONDS = 4.0
"""A process without a beat for so long is the one that broke a connection."""
SILENT_SECONDS = 60.0
"""A process without a beat for so long is given up although its connections stand."""
LONGEST_GRACE_SECONDS = 20.0
"""How long a process may take to end in order once another one is gone, where that is less than `SILENT_SECONDS`."""

_LEFT, _FOLLOWED = "left", "followed"


class LostProcess(EnvironmentProblem):
    """Another process of the group is gone, so that no step can be taken any more."""


class Peers:
    """Beats for this process and listens for the others, in a thread, until its context is left.

    Then it tells the others whether this process leaves because of an error, and why.

    Args:
        store: that all processes reach, for their beats alone.
        rank: of this process.
        size: how many processes there are.
        host: the process that the store lives in, which leaves last; None for the program that started all of them.
        say: called with a sentence before this process is ended in the middle of what it waits for.
        silent_seconds: how long another process may be silent.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        host: int | None,
        say: Callable[[str], None],
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._host, self._say, self._silent_seconds = host, say, silent_seconds
        self._grace_seconds = min(LONGEST_GRACE_SECONDS, silent_seconds)
        self._others = [other for other in range(size) if other != rank]
        store.set(f"who/{rank}", f"process {rank} of {size} (pid {os.getpid()} on {socket.gethostname()})")
        self._beat(0)
        keys = [f"{key}/{other}" for key in ("who", "beat") for other in self._others]
        store.wait(keys, timedelta(minutes=30))
        self._names = [store.get(f"who/{place}").decode() for place in range(size)]
        self._heard = {other: (b"", time.monotonic()) for other in self._others}
        self._host_is_gone = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="beats", daemon=True)
        self._thread.start()

    def name_of(self, rank: int) -> str:
        """Returns what a person can find process `rank` by."""
        return self._names[rank]

    def lost(self, error: Exception) -> LostProcess:
        """Returns what to raise after `error`, which says that a connection broke; waits until it is known whose."""
        deadline = time.monotonic() + 3 * GONE_AFTER_SECONDS
        while time.monotonic() < deadline:
            gone = self._gone(GONE_AFTER_SECONDS)
            if gone:
                return self._without(gone)
            time.sleep(BEAT_SECONDS / 4)
        reason = " ".join(str(error).split())[:200]
        return LostProcess(
            f"another process of the {self._size} broke its connection to process {self._rank} and still lives "
            f"({reason}): see what it says, and run again to go on from the last checkpoint"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._post("end", _FOLLOWED if isinstance(error, LostProcess) else "done" if error is None else _LEFT)
        if error is not None:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._post("why", reason)
            if self._host == self._rank:
                self._wait_for_the_others()
        self._closing.set()
        self._thread.join(timeout=2 * BEAT_SECONDS)

    def _without(self, gone: list[int]) -> LostProcess:
        names = ", ".join(self._described(place) for place in gone)
        return LostProcess(
            f"{names} is gone, and the other processes cannot go on without it: see what it said last, look for a lack "
            "of memory, and run again to go on from the last checkpoint"
        )

    def _described(self, place: int) -> str:
        why = self._read("why", place)
        return f"{self.name_of(place)}{f' after {why}' if why else ''}"

    def _gone(self, silent_seconds: float) -> list[int]:
        """Returns the processes that left on their own account, or are silent for so long without having left."""
        if self._host_is_gone and self._host is not None:
            return [self._host]
        now = time.monotonic()
        ends = {other: self._read("end", other) for other in self._others}
        left = [other for other in self._others if ends[other] == _LEFT]
        silent = [other for other in self._others if not ends[other] and now - self._heard[other][1] >= silent_seconds]
        return left or silent

    def _wait_for_the_others(self) -> None:
        deadline = time.monotonic() + self._grace_seconds / 2
        while time.monotonic() < deadline:
            now = time.monotonic()
            if all(self._read("end", o) or now - self._heard[o][1] > GONE_AFTER_SECONDS for o in self._others):
                return
            time.sleep(BEAT_SECONDS / 4)

    def _listen(self) -> None:
        lost_since: float | None = None
        number = 0
        while not self._closing.wait(BEAT_SECONDS):
            number += 1
            self._beat(number)
            for other in self._others:
                beat = (self._read("beat", other) or "").encode()
                if beat != self._heard[other][0]:
                    self._heard[other] = beat, time.monotonic()
            gone = self._gone(self._silent_seconds)
            if not gone:
                continue
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > self._grace_seconds:
                # The main thread waits in vain; whatever is whole is on disk.
                self._say(str(self._without(gone)))
                os._exit(1)

    def _beat(self, number: int) -> None:
        self._post("beat", str(number))

    def _post(self, key: str, value: str) -> None:
        try:
            self._store.set(f"{key}/{self._rank}", value)
        except RuntimeError:
            self._host_is_gone = True

    def _read(self, key: str, rank: int) -> str | None:
        try:
            name = f"{key}/{rank}"
            return self._store.get(name).decode() if self._store.check([name]) else None
        except RuntimeError:
            self._host_is_gone = True
            return None
