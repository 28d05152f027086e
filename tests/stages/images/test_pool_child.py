"""A decode process answers batches through its pipe and its shared memory, and ends when its parent closes the pipe."""

import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
import pytest

from stages.images.pool_child import BATCH_PAYLOADS, shared_bytes, shared_pixels
from stages.images.prepare import CropPreparation, Prepared
from stages.images.preprocess import Preprocess
from tests.corpora.pictures import jpeg

PREPARATION = CropPreparation(Preprocess((6, 8), (0.5,) * 3, (0.5,) * 3))


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("pixels")
    os.ftruncate(descriptor, shared_bytes(PREPARATION))
    yield descriptor
    os.close(descriptor)


def test_shared_memory_holds_a_batch_of_the_largest_pixels(memory: int) -> None:
    assert shared_bytes(PREPARATION) == BATCH_PAYLOADS * 6 * 8 * 3
    slots, same = shared_pixels(memory, PREPARATION), shared_pixels(memory, PREPARATION)
    assert slots.shape == (BATCH_PAYLOADS, 6, 8, 3) and slots.dtype == np.uint8
    slots[15, 5, 7, 2] = 9
    assert same[15, 5, 7, 2] == 9 and same.sum() == 9, "both ends see the same bytes"


def results_of(link: Connection, num_results: int) -> list[tuple[Prepared, int]]:
    found: list[tuple[Prepared, int]] = []
    while len(found) < num_results:
        assert link.poll(30), "no answer"
        found += link.recv()
    return found


def test_batches_are_answered_in_order_with_pixels_in_their_slots_until_the_pipe_is_closed(memory: int) -> None:
    parent, child = Pipe()
    begun, begun_end = os.pipe()
    code = "from stages.images.pool_child import serve; serve()"
    descriptors = (child.fileno(), begun_end, memory)
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, descriptors)], pass_fds=descriptors)
    child.close()
    os.close(begun_end)
    parent.send(PREPARATION)
    slots = shared_pixels(memory, PREPARATION)
    for batch in ([jpeg(20, 10, 1), b"no picture", jpeg(9, 30, 2)], [jpeg(12, 12, 3)]):
        expected = [PREPARATION.prepare(payload, None) for payload in batch]
        parent.send([(payload, None) for payload in batch])
        for slot, (found, filled), wanted in zip(slots, results_of(parent, len(batch)), expected, strict=False):
            assert found.pixels is None, "pixels do not go through the pipe"
            assert (found.status, found.reason, found.width) == (wanted.status, wanted.reason, wanted.width)
            assert filled == (6 if wanted.pixels is not None else 0)
            assert wanted.pixels is None or np.array_equal(slot, wanted.pixels)
    parent.close()
    assert process.wait(30) == 0
    assert os.read(begun, 100) == b"....", "one note for every payload that was begun"
    os.close(begun)
