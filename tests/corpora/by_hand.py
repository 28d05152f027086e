"""Neighbours and selections of a cache, written by hand in place of being mined or found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cache_schema.binding import Binding
from cache_schema.cache import Cache, CachedArray
from cache_schema.layout import Modality
from cache_schema.neighbours import NeighboursRecipe, NeighboursWriter
from cache_schema.selections import Selection, write_selection

METHOD = {"name": "by hand"}


def scored(from_: CachedArray, to: CachedArray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns `ids` (planned rows, k) as a miner would give them: none for rows without a feature, and the cosines."""
    scores = np.full(ids.shape, np.nan, np.float16)
    rows = from_.ok_rows()
    asked_RD = from_.features.gather_unit(rows)
    for column in range(ids.shape[1]):
        scores[rows, column] = (asked_RD * to.features.gather_unit(ids[rows, column])).sum(axis=1)
    return np.where(np.isnan(scores), -1, ids), scores


def write_neighbours(
    cache: Cache,
    name: str,
    ids: np.ndarray,
    scores: np.ndarray,
    *,
    images: Modality = "image",
    texts: Modality = "text",
    index: str = "exact",
) -> Path:
    """Writes `ids` and `scores` (planned rows of `images`, k) as neighbours among `texts`; returns their folder."""
    ends = (Binding.of(cache.array(modality)) for modality in (images, texts))
    with cache.lock() as lock:
        recipe = NeighboursRecipe(*ends, ids.shape[1], {"kind": index})
        writer = NeighboursWriter(cache, name, recipe, fence=lock.fence)
        for part in cache.plan(images).parts():
            rows = slice(part.first_row, part.first_row + part.num_rows)
            writer.commit(part.number, ids[rows], scores[rows])
    return cache.layout.neighbours(name)


def select(cache: Cache, name: str, rows: Sequence[int] | np.ndarray) -> Selection:
    """Writes a selection of image rows and returns it."""
    binding = Binding.of(cache.array("image"))
    selection = Selection(name, binding, METHOD, {"note": "chosen one by one"}, np.array(rows, np.int64))
    write_selection(cache, selection)
    return selection
