"""Six pictures, one of them empty, and ten sentences, two of them empty: the least that has three parts of eight."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_small_corpus(folder: Path) -> Path:
    """Writes `pictures/` and `sentences.txt` into `folder`, and returns it."""
    (folder / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / "pictures" / f"{i}.png")
    (folder / "pictures" / "3.png").write_bytes(b"")
    (folder / "sentences.txt").write_text("".join(f"sentence {i}\n" if i % 7 else "\n" for i in range(10)))
    return folder
