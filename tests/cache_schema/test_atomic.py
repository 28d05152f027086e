"""A file at its final name is whole or absent, and every refusal of the system becomes one clear error."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cache_schema import atomic
from cache_schema.errors import EnvironmentProblem, LockedError, UsageError

# Dies hard at the n-th call of fsync or rename while it replaces a file, as a power cut between two system calls would.
CRASHING_WRITER = """
import os, signal, sys
from pathlib import Path
from cache_schema import atomic
left = int(sys.argv[2])
def counted(call):
    def wrapper(*args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)
    return wrapper
os.fsync, os.replace = counted(os.fsync), counted(os.replace)
atomic.publish_bytes(Path(sys.argv[1]), b"new" * 1000)
"""


def test_a_writer_killed_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for step in range(1, 10):
        path.write_bytes(b"old")
        done = subprocess.run([sys.executable, "-c", CRASHING_WRITER, str(path), str(step)], check=False)
        assert path.read_bytes() in (b"old", b"new" * 1000)
        if done.returncode == 0:
            assert path.read_bytes() == b"new" * 1000
            break
        assert done.returncode == -signal.SIGKILL
    assert step == 4, "file fsync, rename, folder fsync, then a run that ends"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_refusing_system_gives_one_clear_error_and_no_stump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(EnvironmentProblem, match=rf"cannot write {tmp_path}/file \(5 bytes\): {os.strerror(code)}: "):
        atomic.publish_bytes(tmp_path / "file", b"bytes")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_with_an_old_fence_publishes_nothing(tmp_path: Path) -> None:
    fence = atomic.Fence(tmp_path / "lock.json", "mine")
    atomic.publish_json(tmp_path / "lock.json", {"token": "mine"})
    atomic.publish_bytes(tmp_path / "file", b"first", fence=fence)
    atomic.publish_json(tmp_path / "lock.json", {"token": "another"})
    with pytest.raises(LockedError, match="no longer held"):
        atomic.publish_bytes(tmp_path / "file", b"second", fence=fence)
    assert (tmp_path / "file").read_bytes() == b"first"


@pytest.mark.parametrize("held", [{}, [], None, {"token": None}])
def test_a_lock_that_is_gone_or_names_nobody_was_lost(tmp_path: Path, held: object) -> None:
    fence = atomic.Fence(tmp_path / "lock.json", "mine")
    with pytest.raises(LockedError, match=r"^the lock was lost: .*\(it is gone"):
        fence.check()
    atomic.publish_json(tmp_path / "lock.json", held)
    with pytest.raises(LockedError, match=r"^the lock was lost: .*\(another process took over"):
        fence.check()


def test_a_name_that_no_file_system_takes_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path / ("n" * 300), tmp_path / "d" / ("n" * 300)):
        with pytest.raises(UsageError, match=r"^cannot write .*: name a shorter path$"):
            atomic.make_folder(path)
        with pytest.raises(UsageError, match=r"^cannot write .*: name a shorter path$"):
            atomic.publish_bytes(tmp_path / ("n" * 300), b"")


def test_a_log_is_cut_back_to_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for line in ("one", "two", "three"):
        atomic.append_line(log, line)
    log.write_bytes(log.read_bytes() + b"torn")
    atomic.keep_lines(log, 2)
    assert log.read_text() == "one\ntwo\n"


def test_a_file_in_the_way_of_a_folder_is_an_environment_problem(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(EnvironmentProblem, match="choose another folder"):
        atomic.make_folder(tmp_path / "taken" / "inside")
