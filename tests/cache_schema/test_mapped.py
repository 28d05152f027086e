"""A mapped file is its bytes, and costs no open file."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from cache_schema.errors import DamagedError, EnvironmentProblem
from cache_schema.mapped import mapped_file, parsed_by_arrow
from tests.corpora.open_files import few_open_files


def test_a_map_has_the_bytes_of_the_file_also_after_the_file_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 5000)
    mapped = mapped_file(tmp_path / "file")
    (tmp_path / "file").unlink()
    assert mapped is not None and mapped.to_pybytes() == b"abc" * 5000


def test_an_empty_file_has_no_bytes_and_what_is_no_file_has_no_map(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    empty = mapped_file(tmp_path / "empty")
    assert empty is not None and empty.size == 0
    assert [mapped_file(tmp_path / name) for name in ("none", "empty/inside", "fifo", ".")] == [None] * 4


def test_a_map_keeps_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with few_open_files(1):
        maps = [mapped_file(tmp_path / "file") for _ in range(100)]
    assert {mapped.to_pybytes() for mapped in maps if mapped is not None} == {b"abc"}


def test_a_file_that_cannot_be_opened_now_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with few_open_files(0), pytest.raises(EnvironmentProblem, match="Too many open files"):
        mapped_file(tmp_path / "file")


def test_bytes_that_arrow_cannot_parse_are_damage_and_memory_that_lacks_is_not() -> None:
    with pytest.raises(DamagedError, match="in these words"), parsed_by_arrow(Path("f"), "in these words"):
        pa.ipc.open_file(pa.py_buffer(b"no Arrow file at all"))
    lacks_memory = pytest.raises(EnvironmentProblem, match=r"cannot read f: .*vm\.max_map_count")
    with lacks_memory, parsed_by_arrow(Path("f"), "in these words"):
        pa.allocate_buffer(2**62)
