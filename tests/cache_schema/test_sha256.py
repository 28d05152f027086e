"""SHA-256 as the standard library has it, of bytes and of files."""

import hashlib
from pathlib import Path

import pytest

from cache_schema.errors import EnvironmentProblem
from cache_schema.sha256 import sha256_of, sha256_of_file
from tests.corpora.open_files import few_open_files

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_the_published_examples_come_out_of_bytes_and_of_files(tmp_path: Path) -> None:
    for data, expected in ((b"", EMPTY), (b"abc", ABC)):
        (tmp_path / "file").write_bytes(data)
        assert sha256_of(data) == sha256_of(memoryview(data)) == sha256_of_file(tmp_path / "file") == expected


def test_a_file_longer_than_any_buffer_is_hashed_to_its_end(tmp_path: Path) -> None:
    data = bytes(range(256)) * 16_384
    (tmp_path / "file").write_bytes(data + b"end")
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(data + b"end").hexdigest()


def test_what_is_no_file_has_none_and_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none" / "inside", tmp_path):
        assert sha256_of_file(path) is None
    (tmp_path / "file").write_bytes(b"abc")
    with few_open_files(0), pytest.raises(EnvironmentProblem, match="Too many open files"):
        sha256_of_file(tmp_path / "file")
