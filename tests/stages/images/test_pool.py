"""The pool gives the same pixels as decoding inline, in order, and survives every decoder."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import EnvironmentProblem
from stages.images.crops import crop_of
from stages.images.decode import Limits
from stages.images.pool import DecodePool
from stages.images.prepare import CropPreparation, Prepared
from stages.images.preprocess import Preprocess
from tests.corpora.faulty_decoders import BrokenPlan, FaultyPlan, ModulesPlan, ProcessPlan
from tests.corpora.pictures import encoded, jpeg, noise

PREPROCESS = Preprocess((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAN = CropPreparation(PREPROCESS)


def statuses(results: list[Prepared]) -> list[str]:
    return [result.status for result in results]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_results_come_in_order_and_equal_inline_decoding(num_workers: int) -> None:
    payloads = [jpeg(60 + number, 50, number) for number in range(40)]
    payloads[7] = b""
    payloads[20] = encoded(noise(33, 90), "PNG")
    crops = [
        None if number % 2 else crop_of(0, 1, bytes([number] * 16), width=60 + number, height=50)
        for number in range(40)
    ]
    expected = [PLAN.prepare(payload, crop) for payload, crop in zip(payloads, crops, strict=True)]
    with DecodePool(num_workers, PLAN, max_in_flight=8) as pool:
        results = list(pool.map(list(zip(payloads, crops, strict=True))))
    assert len(results) == 40
    for result, wanted in zip(results, expected, strict=True):
        assert (result.status, result.reason) == (wanted.status, wanted.reason)
        assert (result.width, result.height) == (wanted.width, wanted.height)
        if wanted.pixels is None:
            assert result.pixels is None
        else:
            assert result.pixels is not None and result.pixels.dtype == np.uint8
            assert np.array_equal(result.pixels, wanted.pixels)


def test_decode_processes_never_import_torch() -> None:
    with DecodePool(1, ModulesPlan(PREPROCESS)) as pool:
        modules = next(pool.map([(b"", None)])).reason.split()
    assert "stages.images.decode" in modules
    assert not {"torch", "torchvision", "pyarrow", "zarr", "open_clip", "ray"} & set(modules)


@pytest.mark.parametrize("fault", [b"crash", b"exit"])
def test_a_dying_decoder_takes_no_neighbour_with_it(fault: bytes) -> None:
    good = [(jpeg(40, 40, number), None) for number in range(12)]
    requests = [*good[:5], (fault, None), *good[5:9], (fault, None), *good[9:]]
    with DecodePool(2, FaultyPlan(PREPROCESS)) as pool:
        results = list(pool.map(requests))
    assert [at for at, status in enumerate(statuses(results)) if status == "img-decoder-died"] == [5, 10]
    for (payload, _), result in zip(requests, results, strict=True):
        if payload != fault:
            assert np.array_equal(result.pixels, PLAN.prepare(payload, None).pixels)


@pytest.mark.parametrize("fault", [b"hang", b"hang with signals blocked in Python"])
def test_a_hanging_decoder_times_out_within_the_limit_and_takes_no_neighbour_with_it(fault: bytes) -> None:
    requests = [(jpeg(40, 40, number), None) for number in range(8)]
    requests[3] = (fault, None)
    with DecodePool(1, FaultyPlan(PREPROCESS, Limits(seconds=1.0))) as pool:
        started = time.monotonic()
        results = list(pool.map(requests))
        seconds = time.monotonic() - started
    assert statuses(results) == ["ok"] * 3 + ["img-timeout"] + ["ok"] * 4
    assert 1.0 <= seconds < 6.0


def test_a_decoder_killed_once_from_outside_costs_no_row(tmp_path: Path) -> None:
    requests = [(jpeg(40, 40), None), (b"crash once " + os.fsencode(tmp_path / "marker"), None), (jpeg(40, 40), None)]
    with DecodePool(1, FaultyPlan(PREPROCESS)) as pool:
        results = list(pool.map(requests))
    assert (tmp_path / "marker").exists()
    assert statuses(results) == ["ok", "img-empty", "ok"]


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is kept on Linux only")
def test_memory_of_a_decode_process_is_capped() -> None:
    with DecodePool(1, FaultyPlan(PREPROCESS)) as pool:
        results = list(pool.map([(b"eat memory", None), (jpeg(), None)]))
    assert statuses(results) == ["img-memory", "ok"]


def test_a_pool_whose_processes_cannot_start_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with DecodePool(1, BrokenPlan(PREPROCESS)) as pool, pytest.raises(EnvironmentProblem, match="exit code 7"):
        list(pool.map([(jpeg(), None)]))


def test_jobs_are_read_no_further_ahead_than_the_limit() -> None:
    num_read = 0

    def requests() -> Iterator[tuple[bytes, None]]:
        nonlocal num_read
        for number in range(500):
            num_read += 1
            yield jpeg(8, 8, number % 3), None

    with DecodePool(1, PLAN, max_in_flight=32) as pool:
        results = pool.map(requests())
        assert num_read <= 48
        for num_taken in range(1, 101):
            next(results)
            assert num_read <= num_taken + 48
    assert num_read < 200


def test_large_payloads_are_bounded_by_their_bytes() -> None:
    num_read = 0

    def requests() -> Iterator[tuple[bytes, None]]:
        nonlocal num_read
        for _ in range(100):
            num_read += 1
            yield b"\xff\xd8\xff" + bytes(1 << 20), None

    with DecodePool(1, PLAN, max_in_flight_bytes=8 << 20) as pool:
        next(pool.map(requests()))
        assert num_read <= 16


def test_work_goes_on_while_the_caller_is_busy() -> None:
    requests = [(b"0.02", None)] * 64
    with DecodePool(2, ProcessPlan(PREPROCESS)) as pool:
        next(pool.map([(b"0", None)]))
        results = pool.map(requests)
        time.sleep(1.5)
        started = time.monotonic()
        assert len(list(results)) == 64
        assert time.monotonic() - started < 0.5


def test_a_dropped_iterator_leaves_the_pool_usable() -> None:
    with DecodePool(1, PLAN) as pool:
        results = pool.map([(jpeg(), None)] * 100)
        next(results)
        del results
        gc.collect()
        assert statuses(list(pool.map([(jpeg(), None)] * 3))) == ["ok"] * 3


def test_an_error_in_the_jobs_reaches_the_caller_and_close_leaves_no_process() -> None:
    def requests() -> Iterator[tuple[bytes, None]]:
        yield b"0", None
        raise KeyError("from the caller's own iterator")

    pool = DecodePool(1, ProcessPlan(PREPROCESS))
    with pytest.raises(KeyError):
        list(pool.map(requests()))
    pid = int(next(pool.map([(b"0", None)])).reason)
    assert is_running(pid)
    pool.close()
    assert not is_running(pid)


def test_close_ends_work_under_way_at_once() -> None:
    pool = DecodePool(2, ProcessPlan(PREPROCESS))
    pids = {int(result.reason) for result in pool.map([(b"0.05", None)] * 8)}
    pool.map([(b"300", None)] * 8)
    time.sleep(0.2)
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 5
    assert not any(is_running(pid) for pid in pids)


def test_a_forgotten_pool_leaves_no_process() -> None:
    pool = DecodePool(1, ProcessPlan(PREPROCESS))
    pid = int(next(pool.map([(b"0", None)])).reason)
    del pool
    gc.collect()
    assert wait_until(lambda: not is_running(pid))


PARENT = """
import sys, time
from stages.images.pool import DecodePool
from tests.corpora.faulty_decoders import ProcessPlan
from stages.images.preprocess import Preprocess
from stages.images.decode import Limits
pool = DecodePool(1, ProcessPlan(Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3), Limits(seconds=2.0)))
print(next(pool.map([(b"0", None)])).reason, flush=True)
busy = pool.map([(b"600", None)]) if sys.argv[1] == "busy" else None
try:
    time.sleep(600)
except KeyboardInterrupt:
    pool.close()
    print("closed", flush=True)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_decode_processes_end_with_a_killed_parent(state: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, state], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not is_running(pid))


def test_ctrl_c_reaches_the_parent_only_and_ends_quietly() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, "busy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        start_new_session=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    os.killpg(parent.pid, signal.SIGINT)
    output, errors = parent.communicate(timeout=20)
    assert (output.strip(), errors) == ("closed", "")
    assert not is_running(pid)
