"""Mines neighbours: for every row of one array the k nearest rows of another, through its index."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from cache_schema.binding import Binding
from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import MismatchError, UsageError
from cache_schema.indexes import require_current_index
from cache_schema.json_file import Json
from cache_schema.neighbours import NeighboursRecipe, NeighboursWriter, begun_recipe
from cache_schema.plan import Part
from cache_schema.progress import Progress
from stages.device import AUTO
from stages.search.index import (
    INDEX_NAME,
    LoadedIndex,
    build_index,
    index_bytes,
    index_device,
    index_is_current,
    load_index,
    search,
)

_BATCH_ROWS = 1_024


def mine(
    cache: Cache,
    *,
    from_array: CachedArray,
    to_array: CachedArray,
    k: int,
    name: str,
    device: str = AUTO,
    progress: Progress | None = None,
) -> dict[str, Json]:
    """Writes the neighbours `name`: for every ok row of `from_array` the `k` nearest rows of `to_array`, best first.

    Part by part, so that running it again after a crash mines only what is missing. An index that `to_array` lacks is
    built first, and every part that is to be mined is compared with its record, so that a refused run begins no
    neighbours. Where both are one array, a row's nearest neighbour is itself. `device` "auto" is that of the neighbours
    that are there; of new ones a GPU that FAISS sees and that has the memory.

    Returns:
        JSON: rows, parts mined now, from, to, and the mean cosine of the nearest and of the k-th neighbour.

    Raises:
        UsageError: `k` is more than the rows there are.
        UnfinishedError: one of the arrays lacks parts.
        MismatchError: the arrays come from different teachers, or `name` stands for something else.
        DamagedError: a part of an array is not what was committed.
        LockedError: the cache is being written.
    """
    from_array.require_complete()
    to_array.require_complete()
    if from_array.recipe.teacher != to_array.recipe.teacher:
        raise MismatchError(
            f"{from_array} and {to_array} were made by different teachers ({from_array.recipe.specification} and "
            f"{to_array.recipe.specification}): their features cannot be compared; name arrays of one teacher"
        )
    if not 1 <= k <= to_array.num_ok:
        raise UsageError(f"k is {k}, {to_array} has {to_array.num_ok:,} rows: use 1 to {to_array.num_ok:,}")
    with cache.lock() as lock:
        if not index_is_current(to_array):
            build_index(to_array, device=device, fence=lock.fence, progress=progress)
        device = _device_for(device, cache, name, to_array)
        index = load_index(to_array, device=device)
        searched = {**asdict(index.info), "device": device}
        recipe = NeighboursRecipe(Binding.of(from_array), Binding.of(to_array), k, searched)
        writer = NeighboursWriter(cache, name, recipe, fence=lock.fence)
        parts = list(from_array.plan.parts())
        committed = writer.committed()
        pending = [part for part in parts if part.number not in committed]
        _require_committed_rows(from_array, pending, progress)
        sums, done = np.zeros(2), 0
        for part in pending:
            ids, scores = _nearest_of_part(from_array, index, part, k)
            writer.commit(part.number, ids, scores)
            sums += np.nansum(scores[:, [0, -1]], axis=0)
            done += int((ids[:, 0] >= 0).sum())
            if progress is not None:
                progress(part.number + 1, len(parts), f"parts of {from_array.modality}s")
    result: dict[str, Json] = {
        "from": f"{from_array.modality}/{from_array.name}",
        "to": f"{to_array.modality}/{to_array.name}",
        "rows": from_array.num_ok,
        "parts_mined": len(pending),
        "index": index.info.kind,
        "recall_at_10": index.info.recall_at_10,
    }
    if done:
        result |= {"mean_cosine_nearest": round(sums[0] / done, 4), "mean_cosine_kth": round(sums[1] / done, 4)}
    return result


def _device_for(device: str, cache: Cache, name: str, array: CachedArray) -> str:
    """Returns where the index of `array` is searched for the neighbours `name`, which keep to one device."""
    begun = begun_recipe(cache.layout, name)
    if device == AUTO and begun is not None:
        # The first neighbours do not say it: there was no choice.
        return str(begun.index.get("device", "cpu"))
    info = require_current_index(array, INDEX_NAME)
    return index_device(device, index_bytes(info.num_rows, info.dim), num_probes=info.num_probes)


def _require_committed_rows(array: CachedArray, parts: Sequence[Part], progress: Progress | None) -> None:
    for done, part in enumerate(parts, start=1):
        # Whoever reads a row of a part for the first time has all of it compared; later reads are not compared again.
        array.features.gather(np.array([part.first_row]))
        if progress is not None:
            progress(done, len(parts), f"parts of {array.modality}s compared with their records")


def _nearest_of_part(array: CachedArray, index: LoadedIndex, part: Part, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids (-1 for bad rows) and scores (NaN for bad rows), each of shape (planned rows, k)."""
    ids = np.full((part.num_rows, k), -1, np.int64)
    scores = np.full((part.num_rows, k), np.nan, np.float32)
    good = np.setdiff1d(np.arange(part.num_rows), np.array(array.record(part.number).bad, np.int64))
    for start in range(0, len(good), _BATCH_ROWS):
        offsets = good[start : start + _BATCH_ROWS]
        ids[offsets], scores[offsets] = search(index, array.features.gather_unit(part.first_row + offsets), k)
    return ids, scores
