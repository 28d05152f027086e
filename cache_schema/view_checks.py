"""The checks of a view: 4 bytes per row that say which pixels the teacher saw, beside the records of its array."""

from pathlib import Path

import numpy as np

from cache_schema.errors import DamagedError
from cache_schema.reading import read_file
from cache_schema.records import Record
from cache_schema.sha256 import sha256_of

VIEW_CHECK_BYTES = 4


def read_checks(path: Path, record: Record) -> np.ndarray:
    """Returns the checks at `path`, uint8 of shape (rows of the part, 4), zeros where a row has no feature.

    Raises:
        DamagedError: they are missing, or not those that `record` was committed with.
    """
    data = read_file(path) or b""
    whole = len(data) == VIEW_CHECK_BYTES * record.num_rows
    if not whole or sha256_of(data) != record.files.get("views"):
        raise DamagedError(f"view checks {path} are not those that were committed: run `pipeline verify`")
    return np.frombuffer(data, np.uint8).reshape(record.num_rows, VIEW_CHECK_BYTES)
