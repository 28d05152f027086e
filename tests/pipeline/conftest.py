"""Fixtures of the command line's tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result

from pipeline.executors.ray_cluster import connected
from tests.corpora import command_line
from tests.corpora.command_line import extract_of
from tests.corpora.processes import result_of
from tests.corpora.small_corpus import write_sources


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


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 pictures, one of them empty, and 40 sentences, one of them empty."""
    folder = tmp_path_factory.mktemp("data")
    write_sources(folder, num_images=12, num_texts=40, empty_images=[3], empty_texts=[7])
    return folder


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A cache that `extract` has made of `data`, not to be changed, and what it printed."""
    cache = tmp_path_factory.mktemp("finished") / "cache"
    return cache, result_of(*extract_of(data, cache, "--no-index"))
