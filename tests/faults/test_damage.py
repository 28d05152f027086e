"""Damage is found, named and refused by whoever reads it; repair extracts the damaged parts again and no others."""

from pathlib import Path
from typing import Any

import pytest

from tests.corpora.processes import figures_of


def trial(folder: Path, *args: str) -> dict[str, Any]:
    result = figures_of("tests.faults.damage", folder, *args)
    assert result["wrong"] == [] and result["false_alarms"] == 0, result
    assert result["planted"] == result["found"] == result["named"]
    assert result["of files that are read"] == result["refused"]
    assert result["repairs"] == result["restored"]
    assert result["damaged parts"] == result["parts extracted again"]
    return result


@pytest.mark.slow
def test_every_fault_of_every_kind_of_file_is_named_and_refused_and_repair_is_minimal(tmp_path: Path) -> None:
    # Enough for each of 11 faults once in each of 18 kinds of file, and for records that are sealed anew; more of them
    # differ only in the file and the place.
    result = trial(tmp_path / "cache", "--faults", "150", "--repairs", "12", "--clean-opens", "50")
    assert result["planted"] >= 150 and result["kinds"] == 18 and result["repairs"] >= 6


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_ten_thousand_faults_are_named_and_refused(tmp_path: Path) -> None:
    trial(tmp_path / "cache", "--faults", "10000", "--repairs", "66", "--clean-opens", "1000")
