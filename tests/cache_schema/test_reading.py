"""A file that is not there is damage to somebody; one that cannot be opened now is the machine's fault, and says so."""

import errno
from pathlib import Path

import pytest

from cache_schema.errors import EnvironmentProblem
from cache_schema.reading import cannot_read, failures_told_from_absence, read_file
from tests.corpora.open_files import few_open_files


def test_a_file_gives_its_bytes_and_what_is_no_file_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert read_file(tmp_path / "file") == b"abc"
    for name in ("none", "file/inside", "link", "loop", "x" * 300, "."):
        assert read_file(tmp_path / name) is None


def test_too_many_open_files_are_the_machines_fault_and_the_limit_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with (
        few_open_files(0),
        pytest.raises(
            EnvironmentProblem,
            match=r"cannot read .*file: Too many open files: this process may have \d+ open files: raise",
        ),
    ):
        read_file(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EIO, "check the disk or the mount"),
        (errno.ESTALE, "check the disk or the mount"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "vm.max_map_count"),
        (errno.EACCES, "get permission"),
    ],
)
def test_a_failing_machine_is_never_taken_for_a_missing_file(number: int, remedy: str) -> None:
    with pytest.raises(EnvironmentProblem, match=remedy), failures_told_from_absence(Path("/cache/file")):
        raise OSError(number, "words")


def test_the_error_names_the_file_and_the_systems_words() -> None:
    said = str(cannot_read(Path("/cache/file"), OSError(errno.EIO, "Input/output error")))
    assert said == "cannot read /cache/file: Input/output error: check the disk or the mount and run again"
