"""Nodes, drivers and heads that are lost change nothing but time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.processes import ROOT, environment


def figures_of(folder: Path, *args: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.faults.ray_faults", str(folder), *args]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert figures["wrong"] == []
    assert not any(figures[name] for name in figures.keys() - {"runs", "faults", "wrong"}), figures
    return figures


@pytest.mark.slow
def test_an_extract_goes_on_when_a_node_joins_and_another_one_is_killed(tmp_path: Path) -> None:
    assert figures_of(tmp_path, "nodes")["runs"] == 1


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("trial", ["partition", "driver", "zombie", "head", "refused", "tokens"])
def test_an_extract_survives_the_loss_of_what_it_runs_on(tmp_path: Path, trial: str) -> None:
    assert figures_of(tmp_path, trial, "--rounds", "3")["faults"] >= 3


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_three_hundred_faults_of_workers_give_one_digest(tmp_path: Path) -> None:
    assert figures_of(tmp_path, "workers", "--rounds", "8")["faults"] >= 300
