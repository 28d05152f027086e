"""Fixtures of the command line's tests."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from pipeline.executors.ray_cluster import connected


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[ModuleType]:
    """One private Ray cluster for all tests that need one; starting it takes seconds."""
    with connected(None, num_cpus=2) as ray:
        yield ray


@pytest.fixture(autouse=True)
def no_foreign_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the settings of whoever runs the tests out of them."""
    import os

    for name in list(os.environ):
        if name.startswith("PIPELINE_") or name == "RAY_ADDRESS":
            monkeypatch.delenv(name)
