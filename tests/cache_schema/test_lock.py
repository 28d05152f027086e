"""One writer at a time, and no lock that outlives its holder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache_schema import atomic, lock
from cache_schema.errors import LockedError
from cache_schema.lock import WriterLock, holder_of

HOLDER = """
import sys, time
from pathlib import Path
from cache_schema import atomic, lock
lock.HEARTBEAT_SECONDS = 0.1
with lock.WriterLock(Path(sys.argv[1]) / "lock.json", "cache here") as held:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            atomic.publish_bytes(Path(sys.argv[1]) / "file", line.encode(), fence=held.fence)
            print("written", flush=True)
        except Exception as error:
            print(type(error).__name__, flush=True)
"""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def ask(holder: subprocess.Popen[str], line: str) -> str:
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdin.write(line + "\n")
    holder.stdin.flush()
    return holder.stdout.readline().strip()


def test_a_second_writer_is_refused_with_the_pid_and_host_of_the_first(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        with pytest.raises(LockedError, match=rf"cache here is being written by process {holder.pid} on "):
            WriterLock(tmp_path / "lock.json", "cache here").__enter__()
    finally:
        holder.communicate("")
    assert not (tmp_path / "lock.json").exists()


def test_whoever_looks_at_a_lock_sees_its_living_holder_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    assert holder_of(path) is None
    holder = start_holder(tmp_path)
    seen = holder_of(path)
    assert seen is not None and (seen.pid, seen.is_here) == (holder.pid, True)
    holder.kill()
    holder.wait()
    before = path.read_bytes()
    assert holder_of(path) is None and path.read_bytes() == before
    path.write_text('{"pid": 1, "host": "far", "process_space": "elsewhere"}')
    seen = holder_of(path)
    assert seen is not None and (seen.host, seen.is_here) == ("far", False)


def test_the_lock_of_a_killed_holder_is_taken_over_at_once(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    holder.kill()
    holder.communicate()
    started = time.monotonic()
    with WriterLock(tmp_path / "lock.json", "cache here"):
        assert time.monotonic() - started < lock.STALE_AFTER_SECONDS / 2


def test_a_holder_that_was_stopped_and_continued_cannot_write_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_AFTER_SECONDS", 1.0)
    holder = start_holder(tmp_path)
    assert ask(holder, "first") == "written"
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        with WriterLock(tmp_path / "lock.json", "cache here") as taken:
            os.kill(holder.pid, signal.SIGCONT)
            assert ask(holder, "second") == "LockedError"
            atomic.publish_bytes(tmp_path / "file", b"third", fence=taken.fence)
            holder.communicate("")
            assert (tmp_path / "lock.json").exists(), "the zombie removed a lock that was not its own"
    finally:
        holder.kill()
    assert (tmp_path / "file").read_bytes() == b"third"


def test_a_damaged_lock_file_is_stale(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_bytes(b"{")
    with WriterLock(tmp_path / "lock.json", "cache here") as held:
        held.fence.check()
