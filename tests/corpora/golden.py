"""Where the files of released formats are, and the architecture that their runs were made with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"
RUN = GOLDEN / "run-1"


@contextmanager
def golden_architecture() -> Iterator[None]:
    """Makes `open_clip:golden-tiny` the name of an architecture for a while, as it was when the runs were made."""
    import open_clip
    from open_clip import factory

    open_clip.add_model_config(RUN / "golden-tiny.json")
    yield
    factory._MODEL_CONFIG_PATHS.remove(RUN / "golden-tiny.json")
    del factory._MODEL_CONFIGS["golden-tiny"]
