"""Fixtures of the command line's tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import Result

from pipeline.executors.ray_cluster import connected
from tests.corpora import command_line


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[ModuleType]:
    """One private Ray cluster for all tests that need one; starting it takes seconds."""
    with connected(None, num_cpus=2) as ray:
        yield ray


@pytest.fixture(autouse=True)
def no_foreign_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the settings of whoever runs the tests out of them."""
    for name in list(os.environ):
        if name.startswith("PIPELINE_") or name == "RAY_ADDRESS":
            monkeypatch.delenv(name)


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Returns a function that runs a command line in this process, in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return command_line.invoke
