"""What an attacker pickles: bytes that leave a mark as soon as somebody unpickles them."""

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class Trap:
    """Makes the folder `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def booby_traps(marker: Path) -> Iterator[bytes]:
    """Yields a plain pickle, an npy and an npz of objects, each of which makes `marker` when it is unpickled."""
    yield pickle.dumps(Trap(marker))
    objects = np.array([Trap(marker)], dtype=object)
    for save in (np.save, lambda file, array: np.savez(file, digests=array, features=array)):
        buffer = io.BytesIO()
        save(buffer, objects)  # type: ignore[operator]
        yield buffer.getvalue()
