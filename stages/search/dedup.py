"""Deduplication: a selection in which the first row of every group of duplicates is kept. The cache never changes."""

import numpy as np

from cache_schema.binding import Binding
from cache_schema.cache import Cache, CachedArray
from cache_schema.json_file import Json
from cache_schema.layout import Modality, check_name
from cache_schema.progress import Progress
from cache_schema.samples import digest_of
from cache_schema.selections import (
    Selection,
    read_selection,
    require_same_selection,
    write_selection,
)
from stages.search.near_duplicates import EXACT_UP_TO_ROWS, Duplicates, cosines, near_duplicates

_SHOWN = 10


def dedup(
    cache: Cache,
    *,
    modality: Modality,
    name: str,
    threshold: float | None = None,
    array: str | None = None,
    exact_up_to_rows: int = EXACT_UP_TO_ROWS,
    progress: Progress | None = None,
) -> Selection:
    """Writes the selection `name` of the ok rows that repeat no kept earlier row in plan order, and returns it.

    Without a threshold, two images are duplicates when their payloads have the same digest, and two sentences when
    they are the same after cleaning, which is what the teacher sees. With one, see `near_duplicates`. Nothing is
    written before all is known; a selection of that name made in the same way is returned as it is.

    Args:
        cache: open.
        modality: the modality of the rows.
        name: the name of the selection.
        threshold: least cosine of a duplicate, above 0 and at most 1; None compares contents.
        array: whose ok rows take part, and whose features are compared; None means the only one.
        exact_up_to_rows: as for `near_duplicates`.
        progress: called with (done, total, unit).

    Raises:
        UsageError: the name cannot be one, or the array is unknown.
        UnfinishedError: the array lacks parts.
        MismatchError: `name` stands for a selection made otherwise.
        LockedError: the cache is being written.
    """
    check_name(name, "selection")
    source = cache.array(modality, array)
    source.require_complete()
    binding = Binding.of(source)
    method = _method(modality, threshold, approximate=source.num_ok > exact_up_to_rows)
    if name in cache.layout.selection_names():
        stored = read_selection(cache, name)
        require_same_selection(stored, binding, method)
        return stored
    rows = source.ok_rows()
    if threshold is None:
        found = _equal_contents(source, rows, progress)
    else:
        found = near_duplicates(source.features, rows, threshold, exact_up_to_rows=exact_up_to_rows, progress=progress)
    selection = Selection(name, binding, method, _report(source, rows, found), found.kept)
    write_selection(cache, selection)
    return selection


def _method(modality: Modality, threshold: float | None, *, approximate: bool) -> dict[str, Json]:
    if threshold is None:
        return {"name": "exact duplicates", "of": "payloads" if modality == "image" else "cleaned sentences"}
    search = "approximate" if approximate else "exact"
    return {"name": "near duplicates", "threshold": threshold, "search": search}


def _equal_contents(array: CachedArray, rows: np.ndarray, progress: Progress | None) -> Duplicates:
    digests = np.empty((len(rows), 2), np.uint64)
    parts = rows // array.cache.part_rows
    bounds = np.searchsorted(parts, np.arange(array.plan.num_parts + 1))
    for part in range(array.plan.num_parts):
        here = slice(bounds[part], bounds[part + 1])
        digests[here] = _digests_of_part(array, part, rows[here])
        if progress is not None:
            progress(part + 1, array.plan.num_parts, f"parts of {array.modality}s")
    first = _first_equal(digests)
    is_kept = first == np.arange(len(rows))
    return Duplicates(rows[is_kept], rows[~is_kept], rows[first[~is_kept]], {"kind": "exact"})


def _digests_of_part(array: CachedArray, part: int, rows: np.ndarray) -> np.ndarray:
    column = "text" if array.modality == "text" else "digest"
    # Every part is read once, so none is kept: a part of sentences may be large.
    table = array.cache.read_samples(array.modality, part, ["row", column])
    table = table.take(rows - part * array.cache.part_rows)
    if array.modality == "text":
        digests = [digest_of(text.encode()) for text in table.column("text").to_pylist()]
    else:
        digests = table.column("digest").to_pylist()
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def _first_equal(digests: np.ndarray) -> np.ndarray:
    """Returns for every row of `digests` the place of the first row that equals it."""
    # Stable: equal rows stay in the order of their places.
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def _report(array: CachedArray, rows: np.ndarray, found: Duplicates) -> dict[str, Json]:
    """Returns counts, the largest groups and some pairs with their keys and cosines; bounded, whatever was found."""
    heads, sizes = np.unique(found.repeats, return_counts=True)
    largest = np.lexsort((heads, -sizes))[:_SHOWN]
    # One pair of each of some groups tells more than ten of one.
    some = np.sort(np.unique(found.repeats, return_index=True)[1])[:_SHOWN]
    pairs = found.repeats[some], found.dropped[some]
    keys = [array.cache.keys(array.modality, side) for side in pairs]
    similar = cosines(*(array.features.gather(side) for side in pairs)) if len(some) else np.zeros(0)
    return {
        "rows": len(rows),
        "kept": len(found.kept),
        "dropped": len(found.dropped),
        "groups": len(heads),
        "search": found.search,
        "largest_groups": [
            {"row": int(heads[at]), "key": key, "rows": int(sizes[at]) + 1}
            for at, key in zip(largest, array.cache.keys(array.modality, heads[largest]), strict=True)
        ],
        "examples": [
            {"kept_row": int(a), "kept": kept, "dropped_row": int(b), "dropped": dropped, "cosine": round(float(c), 6)}
            for a, b, kept, dropped, c in zip(*pairs, *keys, similar, strict=True)
        ],
    }
