"""Two extracts on one cache cannot both write, a dead holder's lock is no hurdle, and readers never see half a part."""

from pathlib import Path
from typing import Any

import pytest

from tests.corpora.processes import figures_of


def trial(folder: Path, num_rounds: int) -> dict[str, Any]:
    result = figures_of("tests.faults.rivals", folder, "--rounds", num_rounds)
    assert result["wrong"] == []
    assert (result["double commits"], result["violations"], result["slower than 30 s"]) == (0, 0, 0)
    assert result["rounds"] == num_rounds and result["observations"] > 0
    return result


@pytest.mark.slow
def test_rivals_killed_stopped_and_continued_never_commit_twice_nor_need_help(tmp_path: Path) -> None:
    # One round of each sort; more of them differ only in the instants at which the signals come.
    trial(tmp_path / "rivals", 6)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_in_six_hundred_rounds_no_rival_commits_twice_or_needs_help(tmp_path: Path) -> None:
    assert trial(tmp_path / "rivals", 600)["zombies fenced off"] > 0
