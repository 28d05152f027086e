"""Nodes, drivers and heads that are lost change nothing but time."""

from pathlib import Path
from typing import Any

import pytest

from tests.corpora.processes import figures_of


def trial(folder: Path, *args: str) -> dict[str, Any]:
    figures = figures_of("tests.faults.ray_faults", folder, *args)
    assert figures["wrong"] == []
    assert not any(figures[name] for name in figures.keys() - {"runs", "faults", "wrong"}), figures
    return figures


@pytest.mark.slow
def test_an_extract_goes_on_when_a_node_joins_and_another_one_is_killed(tmp_path: Path) -> None:
    assert trial(tmp_path, "nodes")["runs"] == 1


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("loss", ["partition", "driver", "zombie", "head", "refused", "tokens"])
def test_an_extract_survives_the_loss_of_what_it_runs_on(tmp_path: Path, loss: str) -> None:
    assert trial(tmp_path, loss, "--rounds", "3")["faults"] >= 3


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_three_hundred_faults_of_workers_give_one_digest(tmp_path: Path) -> None:
    assert trial(tmp_path, "workers", "--rounds", "8")["faults"] >= 300
