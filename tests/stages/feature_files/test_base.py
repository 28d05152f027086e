"""Digests of files of features are those of hashlib, whatever pieces the files are read in."""

import hashlib
from pathlib import Path

import pytest

from stages.feature_files.base import FeatureRow, HashedFile, content_sha256
from stages.files.opened import planned_file


@pytest.mark.parametrize("num_bytes", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9 << 20])
def test_a_content_has_the_digest_of_all_its_bytes(num_bytes: int, tmp_path: Path) -> None:
    content = bytes(range(251)) * (num_bytes // 251 + 1)
    (tmp_path / "a").write_bytes(content[:num_bytes])
    with planned_file(str(tmp_path / "a")) as file:
        assert content_sha256(file) == hashlib.sha256(content[:num_bytes]).hexdigest()


def test_a_hashed_file_takes_in_what_is_read_and_nothing_of_a_stream(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with planned_file(str(tmp_path / "a")) as file:
        hashed = HashedFile(file)
        assert hashed.size_bytes == 10 and hashed.sha256.hexdigest() == hashlib.sha256().hexdigest()
        assert [hashed.read_at(0, 4), hashed.read_at(4, 100), hashed.read_at(10, 4)] == [b"0123", b"456789", b""]
        with hashed.stream(8) as stream:
            assert stream.read() == b"89"
        assert hashed.sha256.hexdigest() == hashlib.sha256(b"0123456789").hexdigest()


def test_rows_are_told_apart_by_what_they_are_and_not_by_their_vectors() -> None:
    row = FeatureRow("a", None, 3)
    assert (row.status, row.reason) == ("ok", "") and row == row and row != FeatureRow("a", None, 3)
