"""Power loss: everything reported committed is still there; nothing torn is believed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.corpora.least_corpus import write_small_corpus
from tests.faults.processes import ROOT, environment


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_small_corpus(tmp_path / "corpus")


def trial(corpus: Path, *args: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.faults.power_loss", str(corpus), *args]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_after_a_power_cut_nothing_committed_is_missing_and_nothing_torn_is_believed(corpus: Path) -> None:
    result = trial(corpus, "--states", "300", "--resume-every", "20")
    assert result["wrong"] == []
    assert result["states"] == 300 and result["resumed"] == 15


@pytest.mark.slow
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
