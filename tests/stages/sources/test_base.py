"""What a scan and a sample say of themselves."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from stages.sources.base import RawSample, ScannedSource


def test_an_offset_is_an_ordinary_number_however_large() -> None:
    scan = ScannedSource("0" * 64, 3, np.array([0, 5, 2**62], np.int64), np.zeros(0, np.uint64))
    offsets = [scan.offset_bytes(index) for index in range(3)]
    assert offsets == [0, 5, 2**62] and {type(offset) for offset in offsets} == {int}
    with pytest.raises(IndexError):
        scan.offset_bytes(3)


def test_no_two_scans_share_what_they_ignored() -> None:
    first, second = (ScannedSource("0" * 64, 0, np.zeros(0, np.int64), np.zeros(0, np.uint64)) for _ in range(2))
    first.ignored[".txt"] = 1
    assert second.ignored == {}


def test_a_sample_is_ok_unless_it_says_otherwise_and_never_changes() -> None:
    sample = RawSample("a", b"x", 0, 1)
    assert (sample.status, sample.reason) == ("ok", "")
    with pytest.raises(FrozenInstanceError):
        sample.status = "src-changed"  # type: ignore[misc]
