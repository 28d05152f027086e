"""The checks of a view are four bytes per row, and none but those that were committed."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import DamagedError
from cache_schema.records import Record
from cache_schema.view_checks import read_checks
from tests.corpora.damaged_files import DAMAGE

CHECKS = bytes([1, 2, 3, 255, 0, 0, 0, 0, 9, 8, 7, 6])


def record_of(data: bytes, num_rows: int) -> Record:
    files = {"views": hashlib.sha256(data).hexdigest()}
    return Record(0, num_rows, "f" * 64, "a" * 64, (), (), files, (0,), "cpu")


def test_checks_come_back_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "00000.views").write_bytes(CHECKS)
    found = read_checks(tmp_path / "00000.views", record_of(CHECKS, 3))
    assert found.dtype == np.uint8
    assert found.tolist() == [[1, 2, 3, 255], [0, 0, 0, 0], [9, 8, 7, 6]]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_or_missing_checks_are_named_with_the_way_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "00000.views"
    path.write_bytes(CHECKS)
    DAMAGE[damage](path)
    with pytest.raises(DamagedError, match=r"00000\.views are not those that were committed: run `pipeline verify`"):
        read_checks(path, record_of(CHECKS, 3))


@pytest.mark.parametrize("num_rows", [2, 4, 12])
def test_checks_of_another_number_of_rows_are_refused_although_their_hash_is_right(
    tmp_path: Path, num_rows: int
) -> None:
    (tmp_path / "v").write_bytes(CHECKS)
    with pytest.raises(DamagedError):
        read_checks(tmp_path / "v", record_of(CHECKS, num_rows))


def test_a_record_of_a_view_that_is_no_crop_has_no_checks(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(CHECKS)
    with pytest.raises(DamagedError):
        read_checks(tmp_path / "v", replace(record_of(CHECKS, 3), files={}))
