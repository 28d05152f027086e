"""The state of a file changes with the file that carries its name, and with nothing else."""

import os
from pathlib import Path

from cache_schema import atomic
from cache_schema.file_state import FileState, state_of_file


def test_the_state_is_inode_size_and_time_as_the_system_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "größe"
    path.write_bytes(b"abc")
    os.utime(path, ns=(0, 1_234_567_890_123_456_789))
    assert state_of_file(path) == FileState(os.stat(path).st_ino, 3, 1_234_567_890_123_456_789)


def test_reading_and_renaming_leave_the_state(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    before = state_of_file(path)
    path.read_bytes()
    assert state_of_file(path) == before
    assert state_of_file(path.rename(tmp_path / "other")) == before


def test_a_file_replaced_by_one_of_the_same_bytes_and_time_is_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.publish_bytes(path, b"abc")
    os.utime(path, ns=(1, 1))
    before = state_of_file(path)
    atomic.publish_bytes(path, b"abc")
    os.utime(path, ns=(1, 1))
    assert state_of_file(path) != before


def test_what_is_gone_has_no_state(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("none", "file/inside", "link", "x" * 300):
        assert state_of_file(tmp_path / name) is None
