"""Power loss: everything reported committed is still there; nothing torn is believed."""

from pathlib import Path
from typing import Any

import pytest

from tests.corpora.processes import figures_of
from tests.corpora.small_corpus import write_least_sources


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_least_sources(tmp_path / "corpus")


def trial(corpus: Path, *args: str) -> dict[str, Any]:
    result = figures_of("tests.faults.power_loss", corpus, *args)
    return result


@pytest.mark.slow
def test_after_a_power_cut_nothing_committed_is_missing_and_nothing_torn_is_believed(corpus: Path) -> None:
    # The instants come in turn, and so many different states reach the last of them; the campaign resumes 3,000.
    result = trial(corpus, "--states", "160", "--resume-every", "16")
    assert result["wrong"] == []
    assert result["states"] == 160 and result["resumed"] == 10


@pytest.mark.slow
def test_no_sync_of_any_kind_of_file_can_be_left_out(corpus: Path) -> None:
    # One file or folder of each kind: what one part syncs, every other part syncs in the same lines.
    result = trial(corpus, "--without-each-sync", "--one-of-a-kind")
    assert result["idle"] == []
    assert result["syncs"] >= 35


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_no_sync_can_be_left_out(corpus: Path) -> None:
    result = trial(corpus, "--without-each-sync")
    assert result["idle"] == []
    assert result["syncs"] >= 50


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_after_a_power_cut_every_state_resumes_to_the_same_digest(corpus: Path) -> None:
    result = trial(corpus, "--states", "3000")
    assert result["wrong"] == []
    assert result["resumed"] == result["states"] == 3000
