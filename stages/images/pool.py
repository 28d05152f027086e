"""A pool of decode processes: payloads in, pixels out, in order; a decoder that dies or hangs takes nothing with it."""

import queue
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple

from stages.images.decode_process import DecodeProcess, closed_pool
from stages.images.pool_child import BATCH_PAYLOADS
from stages.images.prepare import Preparation, Prepared, Request
from stages.images.shared_pixels import SharedPixels, Slab

_BATCH_BYTES = 4 << 20
_LEAST_IN_FLIGHT = 256
_TASKS_OF_A_WORKER = 2


class Filled(NamedTuple):
    """Results whose pixels lie in a slab and not in them, and the seconds that reading and decoding took."""

    results: list[Prepared]
    read_seconds: float
    decode_seconds: float


class DecodePool:
    """Prepares payloads in `num_workers` processes, or in this one when it is 0 (the time limit is then not enforced).

    Use it as a context manager, or call `close`. Several calls of `map` and `fill` may be under way at once, from
    several threads. The same payloads give the same pixels whatever the number of workers.

    Args:
        num_workers: decode processes; each costs about 40 MB, and 60 more after large pictures.
        preparation: what is done to every payload.
        max_in_flight: payloads handed out and not yet consumed, per `map` call; with `max_in_flight_bytes` it bounds
            memory and sets how far decoding runs ahead. None lets every worker have work.
        max_in_flight_bytes: likewise for the bytes of the payloads.
        num_readers: threads of `fill` beside one for every worker: so many more tasks are read while others decode.
    """

    def __init__(
        self,
        num_workers: int,
        preparation: Preparation,
        *,
        max_in_flight: int | None = None,
        max_in_flight_bytes: int = 256 << 20,
        num_readers: int = 0,
    ) -> None:
        self.num_workers = num_workers
        self.preparation = preparation
        self._max_in_flight = max_in_flight or max(_LEAST_IN_FLIGHT, _TASKS_OF_A_WORKER * BATCH_PAYLOADS * num_workers)
        self._max_in_flight_bytes = max_in_flight_bytes
        self._closed = False
        self._memory = SharedPixels(preparation.shape)
        self._children = [DecodeProcess(preparation, self._memory.descriptor) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[DecodeProcess] = queue.SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self.num_threads = max(1, num_workers + (num_readers if num_workers else 0))
        self._threads = ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode")
        self._stop = weakref.finalize(self, _stop_all, self._children, self._threads, self._memory)

    def map(self, requests: Iterable[Request]) -> Iterator[Prepared]:
        """Returns the prepared payloads in the order of `requests`, starting to work at once.

        `requests` may be lazy: it is read in the caller's thread, never further ahead than the limits of the pool.
        Dropping the iterator early leaves the pool usable. Pixels of 16 payloads that follow each other lie in one
        piece of memory, which is used again when all of them are forgotten.

        Raises:
            EnvironmentProblem: a decode process cannot be started, again and again.
        """
        assert not self._closed, "the pool is closed"
        if self.num_workers == 0:
            return (self.preparation.prepare(payload, wanted) for payload, wanted in requests)
        most = self.payloads_of_a_task(len(requests)) if isinstance(requests, Sequence) else BATCH_PAYLOADS
        flow = _Flow(self, iter(_batches(requests, most)))
        flow.fill()
        return flow.results()

    def lease(self, num_rows: int) -> Slab:
        """Returns room for the pixels of so many payloads, for `fill`."""
        return self._memory.lease(num_rows)

    def fill(self, read: Callable[[], Sequence[Request]], slab: Slab, rows: Sequence[int]) -> "Future[Filled]":
        """Prepares what `read` returns, each into its row of the slab; work is begun in the order of the calls.

        `read` is called in a thread of the pool, beside others, before a worker is taken.

        Raises, when its result is asked for:
            EnvironmentProblem: a decode process cannot be started, again and again; or whatever `read` raises.
        """
        return self._threads.submit(self._fill, read, slab, rows)

    def payloads_of_a_task(self, num_payloads: int) -> int:
        """Returns how many payloads travel in one message: few enough that every worker gets some."""
        return max(1, min(BATCH_PAYLOADS, -(-num_payloads // (_TASKS_OF_A_WORKER * max(1, self.num_workers)))))

    def require_open(self) -> None:
        """Raises `EnvironmentProblem` when the pool was closed: what was to be done is needed no more."""
        if self._closed:
            raise closed_pool()

    def close(self) -> None:
        """Stops the processes at once; work under way is dropped."""
        self._closed = True
        self._stop()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, batch: list[Request]) -> "Future[list[Prepared]]":
        return self._threads.submit(self._prepare_batch, batch)

    def _prepare_batch(self, batch: list[Request]) -> list[Prepared]:
        slab = self.lease(BATCH_PAYLOADS)
        with self._child() as child:
            results = child.prepare(batch, slab, range(len(batch)))
        return [
            replace(prepared, pixels=slab.pixels[row, :filled]) if prepared.status == "ok" else prepared
            for row, (prepared, filled) in enumerate(results)
        ]

    def _fill(self, read: Callable[[], Sequence[Request]], slab: Slab, rows: Sequence[int]) -> Filled:
        started = time.perf_counter()
        requests = read()
        read_seconds = time.perf_counter() - started
        with self._child() if self.num_workers else nullcontext() as child:
            started = time.perf_counter()
            if child is None:
                results = [self._fill_inline(*one, slab) for one in zip(rows, requests, strict=True)]
            else:
                results = [prepared for prepared, _ in child.prepare(requests, slab, rows)]
            return Filled(results, read_seconds, time.perf_counter() - started)

    def _fill_inline(self, row: int, request: Request, slab: Slab) -> Prepared:
        prepared = self.preparation.prepare(*request)
        if prepared.pixels is not None:
            slab.pixels[row, : len(prepared.pixels)] = prepared.pixels
        return replace(prepared, pixels=None)

    @contextmanager
    def _child(self) -> Iterator[DecodeProcess]:
        child = self._idle.get()
        try:
            yield child
        finally:
            self._idle.put(child)


class _Flow:
    """One `map` call: batches handed to the threads, at most so many ahead of the consumer."""

    def __init__(self, pool: DecodePool, batches: Iterator[list[Request]]) -> None:
        self._pool = pool
        self._batches = batches
        self._pending: deque[tuple[Future[list[Prepared]], int, int]] = deque()
        self._num_payloads = 0
        self._num_bytes = 0

    def fill(self) -> None:
        while not self._pending or (
            self._num_payloads < self._pool._max_in_flight and self._num_bytes < self._pool._max_in_flight_bytes
        ):
            batch = next(self._batches, None)
            if batch is None:
                return
            num_bytes = sum(len(payload) for payload, _ in batch)
            self._pending.append((self._pool._submit(batch), len(batch), num_bytes))
            self._num_payloads += len(batch)
            self._num_bytes += num_bytes

    def results(self) -> Iterator[Prepared]:
        try:
            while self._pending:
                future, num_payloads, num_bytes = self._pending.popleft()
                results = future.result()
                self._num_payloads -= num_payloads
                self._num_bytes -= num_bytes
                self.fill()
                yield from results
        finally:
            for future, _, _ in self._pending:
                future.cancel()


def _batches(requests: Iterable[Request], max_payloads: int) -> Iterator[list[Request]]:
    batch: list[Request] = []
    num_bytes = 0
    for request in requests:
        batch.append(request)
        num_bytes += len(request[0])
        if len(batch) == max_payloads or num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _stop_all(children: list[DecodeProcess], threads: ThreadPoolExecutor, memory: SharedPixels) -> None:
    for child in children:
        child.kill()
    threads.shutdown(wait=True, cancel_futures=True)
    for child in children:
        child.end()
    memory.close()
