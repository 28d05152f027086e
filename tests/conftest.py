"""How the tests are shared out among the workers of `pytest -n`. Without `-n` nothing here does anything."""

from typing import Any

import pytest

RAY_FILES = "tests/pipeline/executors/test_ray_"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts files with slow tests first: what comes last is short, and no worker is left alone with an hour's tail."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Returns a scheduler that keeps files together, for their fixtures, and those that share one Ray cluster."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return RAY_FILES if file.startswith(RAY_FILES) else file

    # In the order of the collection, not the files with the most tests first.
    config.option.loadscopereorder = False
    return Scheduler(config, log)
