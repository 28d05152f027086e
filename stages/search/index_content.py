"""Whether a FAISS index is one of an array's features: the right kind, rows, ids and vectors, and nothing else.

A sidecar says which file the index is, and which features it was built from; both are words. What the file holds is
compared here, after it was built and whenever it is loaded.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from cache_schema.cache import CachedArray
from cache_schema.errors import DamagedError
from cache_schema.indexes import REBUILD

_SAMPLED_ROWS = 32
_TOLERANCE = 2e-3
"""How far a value of a stored vector may be from the feature's: twice the rounding of float16 near 1, with room."""


def require_index_of(index: Any, array: CachedArray, where: object) -> None:
    """Raises `DamagedError` unless `index`, on the CPU, holds exactly the ok rows of `array`, once each.

    Kind, width, metric, sums and ids are compared with all rows, vectors with the features of one row of every part and
    some more, drawn by seed; every vector must be finite. Opens, and so checks, every part of the features.

    Args:
        index: inverted lists of float16 vectors, or exact vectors with ids.
        array: finished.
        where: names the index, for messages.
    """
    for what in _problems(index, array):
        raise DamagedError(f"index {where} {what}: delete it and {REBUILD}")


def _problems(index: Any, array: CachedArray) -> Iterator[str]:
    import faiss

    rows, dim = array.ok_rows(), array.recipe.dim
    if not isinstance(index, faiss.IndexIVFScalarQuantizer | faiss.IndexIDMap2):
        yield f"is of kind {type(index).__name__}, which is none that is built here"
        return
    inner = [faiss.downcast_index(index.quantizer if isinstance(index, faiss.IndexIVF) else index.index)]
    for each in (index, *inner):
        if (each.d, each.metric_type) != (dim, faiss.METRIC_INNER_PRODUCT):
            yield f"has width {each.d} and metric {each.metric_type}, {array} needs {dim} and inner products"
            return
    if not isinstance(inner[0], faiss.IndexFlat):
        yield f"rests on {type(inner[0]).__name__}, which is none that is built here"
        return
    stored = _inverted_lists(index) if isinstance(index, faiss.IndexIVF) else _exact_vectors(index, inner[0])
    if isinstance(stored, str):
        yield stored
        return
    ids = np.concatenate([ids for ids, _, _ in stored])
    if not index.ntotal == len(ids) == len(rows):
        yield f"says that it has {index.ntotal:,} vectors and has {len(ids):,}, {array} has {len(rows):,} ok rows"
    elif not np.array_equal(np.sort(ids), rows):
        yield f"has ids that are not the ok rows of {array}, each once"
    else:
        yield from _wrong_vectors(stored, array, rows)


Stored = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Ids, vectors and what was subtracted from each vector, list by list, seen in the index's own memory."""


def _inverted_lists(index: Any) -> Stored | str:
    import faiss

    lists, dim = index.invlists, index.d
    if index.sq.qtype != faiss.ScalarQuantizer.QT_fp16 or not index.code_size == lists.code_size == 2 * dim:
        return "does not hold float16 vectors"
    if not index.nlist == lists.nlist == index.quantizer.ntotal:
        return f"has {index.nlist} lists, {lists.nlist} of them filled, around {index.quantizer.ntotal} centres"
    flat: Any = faiss.downcast_index(index.quantizer)
    centres = _view(flat.get_xb(), index.nlist * dim).reshape(index.nlist, dim) * np.float32(index.by_residual)
    if not np.isfinite(centres).all():
        return "has a centre that is not finite"
    found = []
    for number in range(index.nlist):
        size = lists.list_size(number)
        codes = _view(lists.get_codes(number), size * 2 * dim).view(np.float16)
        found.append((_view(lists.get_ids(number), size), codes.reshape(size, dim), centres[number]))
    return found


def _exact_vectors(index: Any, flat: Any) -> Stored | str:
    import faiss

    ids = faiss.vector_to_array(index.id_map)
    if not index.ntotal == flat.ntotal == len(ids):
        return f"says that it has {index.ntotal:,} vectors and has {flat.ntotal:,} with {len(ids):,} ids"
    vectors = _view(flat.get_xb(), flat.ntotal * index.d).reshape(flat.ntotal, index.d)
    return [(ids, vectors, np.zeros(index.d, np.float32))]


def _view(pointer: Any, count: int) -> np.ndarray:
    import faiss

    return faiss.rev_swig_ptr(pointer, count)


def _wrong_vectors(stored: Stored, array: CachedArray, rows: np.ndarray) -> Iterator[str]:
    drawn = np.random.default_rng(2).permutation(rows)
    # One row of every part, so that all parts are opened, which checks them whole, and some rows more.
    _, of_every_part = np.unique(drawn // array.cache.part_rows, return_index=True)
    sampled = np.union1d(drawn[:_SAMPLED_ROWS], drawn[of_every_part])
    expected = dict(zip(sampled.tolist(), array.features.gather_unit(sampled), strict=True))
    for ids, vectors, centre in stored:
        spoilt = ~np.isfinite(vectors).all(axis=1)
        if spoilt.any():
            yield f"has a vector for row {ids[spoilt][0]} that is not finite"
        for place in np.flatnonzero(np.isin(ids, sampled)):
            row = int(ids[place])
            if np.abs(vectors[place] + centre - expected[row]).max() > _TOLERANCE:
                yield f"has another vector for row {row} than {array} has"
