"""A decode process answers tasks through its pipe and its shared memory, and ends when its parent closes the pipe."""

import os
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np

from stages.images.pool_child import Task
from stages.images.prepare import CropPreparation, Prepared
from stages.images.preprocess import Preprocess
from stages.images.shared_pixels import SharedPixels
from tests.corpora.pictures import jpeg

PREPARATION = CropPreparation(Preprocess((6, 8), (0.5,) * 3, (0.5,) * 3))


def results_of(link: Connection, num_results: int) -> list[tuple[Prepared, int]]:
    found: list[tuple[Prepared, int]] = []
    while len(found) < num_results:
        assert link.poll(30), "no answer"
        found += link.recv()
    return found


def test_tasks_are_answered_in_order_with_pixels_in_their_rows_until_the_pipe_is_closed() -> None:
    memory = SharedPixels(PREPARATION.shape)
    parent, child = Pipe()
    begun, begun_end = os.pipe()
    code = "from stages.images.pool_child import serve; serve()"
    descriptors = (child.fileno(), begun_end, memory.descriptor)
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, descriptors)], pass_fds=descriptors)
    child.close()
    os.close(begun_end)
    parent.send(PREPARATION)
    small, large = memory.lease(4), memory.lease(4000)
    for slab, rows, batch in (
        (small, [2, 0, 3], [jpeg(20, 10, 1), b"no picture", jpeg(9, 30, 2)]),
        (large, [3999], [jpeg(12, 12, 3)]),
    ):
        slab.pixels[:] = 9
        expected = [PREPARATION.prepare(payload, None) for payload in batch]
        parent.send(Task([(payload, None) for payload in batch], rows, slab.offset_bytes, slab.size_bytes))
        for row, (found, filled), wanted in zip(rows, results_of(parent, len(batch)), expected, strict=True):
            assert found.pixels is None, "pixels do not go through the pipe"
            assert (found.status, found.reason, found.width) == (wanted.status, wanted.reason, wanted.width)
            assert filled == (6 if wanted.pixels is not None else 0)
            assert np.array_equal(slab.pixels[row], np.full((6, 8, 3), 9) if wanted.pixels is None else wanted.pixels)
        others = np.setdiff1d(np.arange(len(slab.pixels)), rows)
        assert (slab.pixels[others] == 9).all(), "no other row is touched"
    parent.close()
    assert process.wait(30) == 0
    assert os.read(begun, 100) == b"....", "one note for every payload that was begun"
    os.close(begun)
    memory.close()
