"""kill -9 at any instant of an import, or a disk that fails at any instant, then rerun: the same cache."""

from pathlib import Path
from typing import Any

import pytest

from tests.corpora.processes import figures_of
from tests.faults.killed_imports import write_features


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("features"))


def trial(features: Path, *args: str) -> dict[str, Any]:
    result = figures_of("tests.faults.killed_imports", features, *args)
    assert result["wrong"] == [], result["wrong"]
    return result


@pytest.mark.slow
def test_an_import_killed_at_every_twenty_ninth_durable_operation_reruns_to_the_same_digest(features: Path) -> None:
    assert trial(features, "kill", "--step", "29")["runs"] >= 6


@pytest.mark.slow
def test_a_disk_that_fails_during_an_import_is_one_clear_error_and_resumable(features: Path) -> None:
    assert trial(features, "each", "--first", "2", "--step", "47")["runs"] >= 4


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("fault", ["kill", "each"])
def test_a_fault_at_every_durable_operation_of_an_import_leaves_a_cache_that_reruns(features: Path, fault: str) -> None:
    assert trial(features, fault)["runs"] >= 150
