"""One decode process from its parent's side: started when it is needed, and again after a payload has killed it.

Every process is a fresh interpreter that imports Pillow and NumPy only. It is started by its own command line, not
through `multiprocessing`, which would import the caller's main module (and torch with it) into every child.
The time limit is a kernel alarm inside the child, so it also ends a decoder that never returns to Python, and a
child whose parent was killed ends itself: at the end of its pipe, or at the alarm.
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from cache_schema.errors import EnvironmentProblem
from stages.images.pool_child import Message, Task
from stages.images.prepare import Preparation, Prepared, Request
from stages.images.shared_pixels import Slab

_CHILD = "from stages.images.pool_child import serve; serve()"
_STARTS_WITHOUT_WORK = 3
_DEADLINE_SLACK_SECONDS = 10.0
_MEMORY_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""glibc gives memory of this size back after a picture and takes it again, page by page: 22 faults for a stored picture
of 256 pixels, 5 to 10 % of its time. So much stays with a process. Other C libraries do not look at it."""


class DecodeProcess:
    """A decode process, its pipes, and the memory that it shares with us; one thread at a time may use it.

    Args:
        preparation: what it does to every payload.
        descriptor: of the shared memory that its pixels go to.

    Attributes:
        stopped: whether it was killed for good.
    """

    def __init__(self, preparation: Preparation, descriptor: int) -> None:
        self._preparation = preparation
        self._descriptor = descriptor
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._begun_fd = -1
        self.stopped = False

    def prepare(self, requests: Sequence[Request], slab: Slab, rows: Sequence[int]) -> Message:
        """Returns one result per request, whose pixels lie in its row of the slab, however often payloads kill us.

        A payload during which the process died is tried once more, alone: the machine may have killed it (memory).

        Raises:
            EnvironmentProblem: the process cannot be started, again and again, or was stopped for good.
        """
        results: Message = []
        starts_without_work = 0
        suspect = -1
        while len(results) < len(requests):
            at = len(results)
            end = at + 1 if suspect == at else len(requests)
            arrived, num_begun, exit_code = self._exchange(requests[at:end], slab, rows[at:end])
            results += arrived
            if exit_code is None:
                continue
            if self.stopped:
                raise closed_pool()
            if num_begun == 0:
                starts_without_work += 1
                if starts_without_work == _STARTS_WITHOUT_WORK:
                    raise EnvironmentProblem(
                        f"decode processes end before their first picture (exit code {exit_code}): "
                        "see their message above, free memory, or decode inline with 0 workers"
                    )
                continue
            starts_without_work = 0
            culprit = at + num_begun - 1
            # Results between the last that arrived and the culprit were lost; their payloads are innocent.
            lost = slice(len(results), culprit)
            results += self.prepare(requests[lost], slab, rows[lost])
            if exit_code == -signal.SIGALRM:
                results.append((Prepared(None, "img-timeout", "decoding took too long"), 0))
            elif suspect == culprit:
                results.append((Prepared(None, "img-decoder-died", "the decoder ended its process"), 0))
            else:
                suspect = culprit
        return results

    def kill(self) -> None:
        """Kills the process from another thread, for good; who waits for it then sees the end of its pipe."""
        self.stopped = True
        process = self._process
        if process is not None:
            process.kill()

    def end(self) -> int:
        """Stops the process and returns its exit code: its own one if it had already ended."""
        process, connection, fd = self._process, self._connection, self._begun_fd
        self._process, self._connection, self._begun_fd = None, None, -1
        if connection is not None:
            connection.close()
        if fd >= 0:
            os.close(fd)
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A process that broke its pipe is on its way out; its own exit code tells a crash from an alarm.
            process.wait(timeout=0.5)
        process.kill()
        return process.wait()

    def _exchange(
        self, requests: Sequence[Request], slab: Slab, rows: Sequence[int]
    ) -> tuple[Message, int, int | None]:
        """Sends a task and returns (results, payloads begun, exit code, or None if the process is well).

        The results are those that arrived before the process ended, if it did.
        """
        if self._process is None:
            self._start()
        assert self._connection is not None
        seconds = self._preparation.limits.seconds + _DEADLINE_SLACK_SECONDS
        results: Message = []
        try:
            self._connection.send(Task(list(requests), list(rows), slab.offset_bytes, slab.size_bytes))
            while len(results) < len(requests):
                if not self._connection.poll(seconds):
                    # The child's own alarm is due long before: it is stopped, or its clock is.
                    num_begun = self._num_begun()
                    self.end()
                    return results, num_begun, -signal.SIGALRM
                results += self._connection.recv()
        except (EOFError, OSError):
            num_begun = self._num_begun()
            return results, num_begun, self.end()
        self._num_begun()
        return results, len(requests), None

    def _start(self) -> None:
        if self.stopped:
            raise closed_pool()
        ours, theirs = socket.socketpair()
        begun_read, begun_write = os.pipe()
        os.set_blocking(begun_read, False)
        with theirs:
            descriptors = (theirs.fileno(), begun_write, self._descriptor)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _CHILD, *map(str, descriptors)],
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                    env=_child_environment(),
                )
            except OSError as error:
                ours.close()
                os.close(begun_read)
                raise EnvironmentProblem(
                    f"cannot start a decode process ({error.strerror}): free memory or process slots, "
                    "or use fewer decode workers"
                ) from error
            finally:
                os.close(begun_write)
        # A stopped child reads nothing; without this a message larger than the pipe would wait for it for ever.
        wait_seconds = int(self._preparation.limits.seconds + _DEADLINE_SLACK_SECONDS)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", wait_seconds, 0))
        self._connection = Connection(ours.detach())
        self._begun_fd = begun_read
        with contextlib.suppress(OSError):
            # A child that died at once is found, and counted, by the exchange that follows.
            self._connection.send(self._preparation)

    def _num_begun(self) -> int:
        """Returns how many payloads the child has begun since the last call."""
        try:
            return len(os.read(self._begun_fd, 65536))
        except BlockingIOError:
            return 0


def closed_pool() -> EnvironmentProblem:
    """Returns what ends work that nobody waits for any more."""
    return EnvironmentProblem("the decode pool was closed while work was under way: nothing to do")


def _child_environment() -> dict[str, str]:
    """Returns our environment with our module path, one thread per numeric library, and memory that is kept."""
    path = [os.path.abspath(entry) for entry in sys.path]
    # The processes are many.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**_MEMORY_KEPT, **os.environ, **threads, "PYTHONPATH": os.pathsep.join(path)}
