"""Only regular files are opened, they are read at any place, and a failure is an error that says what to do."""

import errno
import io
import os
import socket
from pathlib import Path

import pytest

from cache_schema.errors import EnvironmentProblem, MismatchError, PipelineError, UsageError
from stages.files.opened import LocalFile, NotRegular, is_remote, open_regular, planned_file, read_range, state_of

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    return tmp_path / "a.bin"


def make_irregular(path: Path, kind: str) -> Path:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))
    elif kind == "link to a folder":
        path.symlink_to(path.parent)
    else:
        path.symlink_to("/dev/zero")
    return path


IRREGULAR = pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "link to a folder", "link to a device"])


@IRREGULAR
def test_nothing_but_a_regular_file_is_opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_irregular(tmp_path / "it", kind)
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(NotRegular, match="not a regular file") as caught:
        open_regular(str(path))
    assert caught.value.filename == str(path)


@IRREGULAR
def test_a_planned_path_that_is_no_regular_file_is_a_usage_error(kind: str, tmp_path: Path) -> None:
    path = make_irregular(tmp_path / "it", kind)
    said = rf"{path} is not a regular file: point at a file or a folder"
    with pytest.raises(UsageError, match=said), planned_file(str(path)):
        pass


def test_a_file_that_turns_into_a_pipe_between_look_and_opening_is_closed_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = os.stat(path)
    pipe = make_irregular(tmp_path / "it", "pipe")
    monkeypatch.setattr(os, "stat", lambda _: regular)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(NotRegular):
        open_regular(str(pipe))
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_link_to_a_file_is_followed_and_the_descriptor_is_for_reading_here_alone(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    descriptor = open_regular(str(tmp_path / "link"))
    try:
        assert os.read(descriptor, 4) == CONTENT[:4] and not os.get_inheritable(descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ["gone", "a.bin/below"])
def test_a_planned_file_that_is_gone_is_to_be_restored(name: str, path: Path) -> None:
    said = rf"{path.parent}/{name} cannot be read any more \(.+\): restore it, then run again"
    with pytest.raises(MismatchError, match=said), planned_file(str(path.parent / name)):
        pass


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (errno.EACCES, MismatchError, r"cannot be read any more \(Permission denied\): restore it, then run again"),
        (errno.EPERM, MismatchError, r"cannot be read any more \(Operation not permitted\): restore it"),
        (errno.EIO, EnvironmentProblem, r"cannot be read \(Input/output error\): mend the disk or the mount, then run"),
        (errno.ESTALE, EnvironmentProblem, r"cannot be read \(Stale file handle\): mend the disk or the mount"),
        (errno.EMFILE, EnvironmentProblem, r"cannot be read \(Too many open files\)"),
    ],
)
@pytest.mark.parametrize("when", ["opened", "read"])
def test_a_failure_of_the_system_is_said_in_words_whenever_it_comes(
    when: str, number: int, error: type[PipelineError], said: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open" if when == "opened" else "pread", fail)
    with pytest.raises(error, match=rf"{path} {said}"), planned_file(str(path)) as file:
        file.read_at(0, 1)


def test_a_planned_file_is_closed_however_its_use_ends(path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with planned_file(str(path)):
        assert set(os.listdir("/proc/self/fd")) != before
    with pytest.raises(KeyError), planned_file(str(path)):
        raise KeyError("of the caller, and not put into other words")
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("pread_bytes", [1 << 20, 7])
def test_a_file_is_read_at_any_place_and_less_comes_only_at_its_end(
    pread_bytes: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread
    # A system may give less than it is asked for, also in the middle of a file.
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, pread_bytes), at))
    with planned_file(str(path)) as file:
        assert file.size_bytes == len(CONTENT) == 10240
        for offset, size in [(0, 10240), (3, 500), (10000, 240), (10239, 1), (5, 0), (10000, 9999), (10240, 5)]:
            assert file.read_at(offset, size) == CONTENT[offset : offset + size]
        assert file.read_at(1 << 40, 5) == b""


def test_a_stream_starts_where_it_is_asked_to_can_seek_and_leaves_the_file_open(path: Path) -> None:
    with planned_file(str(path)) as file:
        with file.stream(250) as stream:
            assert stream.read(10) == CONTENT[250:260] and stream.tell() == 260
            assert stream.seek(9) == 9 and stream.read() == CONTENT[9:]
        with file.stream() as stream:
            assert stream.read() == CONTENT
        assert file.read_at(0, 5) == CONTENT[:5]


def test_two_streams_of_one_file_have_places_of_their_own(path: Path) -> None:
    with planned_file(str(path)) as file, file.stream() as first, file.stream(5000) as second:
        # More than a buffer holds at once, so that both go back to the file.
        pieces = [(first.read(40), second.read(40)) for _ in range(100)]
        assert first.seek(0, io.SEEK_END) == 10240 and second.tell() == 9000
    assert b"".join(one for one, _ in pieces) == CONTENT[:4000]
    assert b"".join(other for _, other in pieces) == CONTENT[5000:9000]


def test_a_range_is_read_whole_or_not_at_all(path: Path) -> None:
    with planned_file(str(path)) as file:
        assert read_range("u", file, 10000, 240) == CONTENT[10000:]
        assert read_range("u", file, 10240, 0) == b""
        with pytest.raises(
            MismatchError,
            match=r"u ends at 10,240 bytes, before the 1,099,511,627,776 bytes expected at offset 5: it changed since",
        ):
            read_range("u", file, 5, 1 << 40)
        with pytest.raises(MismatchError, match=r"before the 241 bytes expected at offset 10,000: .*restore it"):
            read_range("u", file, 10000, 241)


def test_a_range_that_is_lost_while_it_is_read_is_refused(path: Path) -> None:
    with planned_file(str(path)) as file:
        os.truncate(path, 100)
        with pytest.raises(MismatchError, match=r"before the 200 bytes expected at offset 0: it changed"):
            read_range("u", file, 0, 200)


def test_a_wrong_size_is_never_asked_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with planned_file(str(path)) as file:
        monkeypatch.setattr(LocalFile, "read_at", lambda *_: pytest.fail("it was read"))
        with pytest.raises(MismatchError):
            read_range("u", file, 0, 1 << 50)


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("https://host/a.tar", True),
        ("s3://bucket/a", True),
        ("/data/a.tar", False),
        ("/data/http://copied/a.tar", False),
        ("/data/a:b", False),
    ],
)
def test_a_source_is_remote_when_it_has_a_scheme_and_is_no_absolute_path(uri: str, remote: bool) -> None:
    assert is_remote(uri) == remote


def test_the_state_of_a_file_changes_with_its_size_and_its_time_and_not_with_its_name(path: Path) -> None:
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    first = state_of(str(path))
    assert first == {"size_bytes": 10240, "mtime_ns": 1_700_000_000_123_456_789}
    os.utime(path, ns=(99, 1_700_000_000_123_456_789))
    assert state_of(str(path.rename(path.with_name("b.bin")))) == first
    path.write_bytes(b"x")
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    assert state_of(str(path)) == {**first, "size_bytes": 1}


def test_a_folder_and_a_path_of_nothing_have_no_state(tmp_path: Path) -> None:
    assert state_of(str(tmp_path)) == state_of(str(tmp_path / "gone")) == {}
