"""Rows whose features are nearly those of an earlier row: greedy in plan order, in bounded memory.

A row is dropped when the cosine of its feature with that of a *kept* earlier row is at least the threshold. What is
kept depends on the features and the threshold alone. The dot product of two stored float16 features is exact in
float64 whatever the order of the additions (multiples of 2^-48 below 2), so pairs near the threshold are decided in
float64, and float32 matrix products, whose last bits differ between machines, only find them.

Shape letters: A, B rows of two blocks, D width of a feature.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cache_schema.features import FeatureReader, present, unit_rows
from cache_schema.progress import Progress
from stages.search.index import trained_lists

EXACT_UP_TO_ROWS = 262_144
"""More rows are searched through inverted lists, which may miss pairs: comparing all takes N²·D additions."""

_BLOCK_ROWS = 2_048
_EXACT_PAIRS = 4_096
_NUM_PROBES = 16
_CANDIDATES = 4
_CHECKED_ROWS = 1_000


@dataclass(frozen=True, eq=False)
class Duplicates:
    """The duplicates among some rows.

    Attributes:
        kept: rows that stay, ascending.
        dropped: rows that repeat a kept one, ascending.
        repeats: for each dropped row the kept, earlier row that it repeats.
        search: JSON that says how pairs were found; `{"kind": "exact"}` when all were.
    """

    kept: np.ndarray
    dropped: np.ndarray
    repeats: np.ndarray
    search: dict[str, Any]


def near_duplicates(
    features: FeatureReader,
    rows: np.ndarray,
    threshold: float,
    *,
    exact_up_to_rows: int = EXACT_UP_TO_ROWS,
    progress: Progress | None = None,
) -> Duplicates:
    """Returns which of `rows` to keep so that no two kept ones have a cosine of `threshold` or more.

    Up to `exact_up_to_rows` rows that is exactly so, and a dropped row repeats the earliest kept row that is so near.
    Beyond, kept rows are searched through inverted lists: every dropped row is within the threshold of the kept row
    that it repeats, but a pair may be missed, and `search` says how many of some kept rows have one.

    Args:
        features: the features of the array that the rows belong to.
        rows: with a feature, ascending, no row twice.
        threshold: above 0, at most 1.
        exact_up_to_rows: rows that are compared all with all.
        progress: called with (rows compared, rows, unit).

    Raises:
        UsageError: a row has no feature.
        DamagedError: a feature is not the one that was committed.
    """
    assert 0 < threshold <= 1, threshold
    nearest_kept = (
        _AllKeptRows(features, threshold)
        if len(rows) <= exact_up_to_rows
        else _InvertedLists(features, rows, threshold)
    )
    repeats = np.full(len(rows), -1, np.int64)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, min(start + _BLOCK_ROWS, len(rows)))
        block_AD = present(features.gather(rows[block]), rows[block])
        repeats[block] = nearest_kept.repeated_by(block_AD)
        _drop_within_block(rows[block], block_AD, repeats[block], threshold)
        nearest_kept.keep(rows[block][repeats[block] < 0])
        if progress is not None:
            progress(block.stop, len(rows), "rows compared")
    is_kept = repeats < 0
    kept = rows[is_kept]
    return Duplicates(kept, rows[~is_kept], repeats[~is_kept], nearest_kept.search(kept))


def cosines(one_AD: np.ndarray, other_AD: np.ndarray) -> np.ndarray:
    """Returns the cosine of each pair of stored float16 features, float64, shape (A,); exactly 1 for equal ones."""
    one, other = one_AD.astype(np.float64), other_AD.astype(np.float64)
    dots, lengths, other_lengths = ((x * y).sum(axis=-1) for x, y in ((one, other), (one, one), (other, other)))
    return dots / np.sqrt(lengths * other_lengths)


class _AllKeptRows:
    """Compares with every kept row."""

    def __init__(self, features: FeatureReader, threshold: float) -> None:
        self._features = features
        self._threshold = threshold
        self._kept = np.zeros(0, np.int64)

    def keep(self, rows: np.ndarray) -> None:
        self._kept = np.concatenate([self._kept, rows])

    def repeated_by(self, block_AD: np.ndarray) -> np.ndarray:
        """Returns for every row of the block the earliest kept row within the threshold, -1 where there is none."""
        found = np.full(len(block_AD), -1, np.int64)
        for start in range(0, len(self._kept), _BLOCK_ROWS):
            unmatched = np.flatnonzero(found < 0)
            if not len(unmatched):
                break
            kept = self._kept[start : start + _BLOCK_ROWS]
            first = _first_within(block_AD[unmatched], self._features.gather(kept), self._threshold)
            found[unmatched[first >= 0]] = kept[first[first >= 0]]
        return found

    def search(self, kept: np.ndarray) -> dict[str, Any]:
        return {"kind": "exact"}


class _InvertedLists:
    """Compares with the kept rows in the nearest of FAISS's inverted lists; what it finds is checked exactly."""

    def __init__(self, features: FeatureReader, rows: np.ndarray, threshold: float) -> None:
        self._features = features
        self._threshold = threshold
        self._index = trained_lists(features, rows)
        self._index.nprobe = min(_NUM_PROBES, self._index.nlist)

    def keep(self, rows: np.ndarray) -> None:
        if len(rows):
            self._index.add_with_ids(self._features.gather_unit(rows), rows)

    def repeated_by(self, block_AD: np.ndarray) -> np.ndarray:
        """Returns for every row of the block the nearest kept row found within the threshold, -1 for none."""
        found = np.full(len(block_AD), -1, np.int64)
        if not self._index.ntotal:
            return found
        _, ids = self._index.search(unit_rows(block_AD), _CANDIDATES)
        for candidates in ids.T:
            asked = np.flatnonzero((found < 0) & (candidates >= 0))
            near = cosines(block_AD[asked], self._features.gather(candidates[asked])) >= self._threshold
            found[asked[near]] = candidates[asked[near]]
        return found

    def search(self, kept: np.ndarray) -> dict[str, Any]:
        """Returns how pairs were found, and how many of some kept rows should have been dropped."""
        some = np.sort(np.random.default_rng(1).permutation(len(kept))[:_CHECKED_ROWS])
        missed = 0
        for start in range(0, len(some), _BLOCK_ROWS):
            places = some[start : start + _BLOCK_ROWS]
            missed += self._num_repeating(kept, places)
        return {
            "kind": "approximate",
            "num_lists": self._index.nlist,
            "num_probes": self._index.nprobe,
            "checked_kept_rows": len(some),
            "missed_among_checked": missed,
        }

    def _num_repeating(self, kept: np.ndarray, places: np.ndarray) -> int:
        asked_AD = self._features.gather(kept[places])
        repeating = np.zeros(len(places), bool)
        for start in range(0, int(places.max(initial=0)), _BLOCK_ROWS):
            block = kept[start : start + _BLOCK_ROWS]
            earlier = np.flatnonzero(~repeating & (places > start))
            first = _first_within(asked_AD[earlier], self._features.gather(block), self._threshold)
            repeating[earlier] = (first >= 0) & (start + first < places[earlier])
        return int(repeating.sum())


def _drop_within_block(rows: np.ndarray, block_AD: np.ndarray, repeats: np.ndarray, threshold: float) -> None:
    """Notes in `repeats` the rows of a block that repeat a kept one of the same block."""
    unmatched = np.flatnonzero(repeats < 0)
    similar = np.triu(_products(block_AD[unmatched], block_AD[unmatched]) >= threshold - _slack(block_AD), k=1)
    for place in np.flatnonzero(similar.any(axis=1)):
        at = unmatched[place]
        if repeats[at] >= 0:
            continue
        later = unmatched[similar[place]]
        later = later[repeats[later] < 0]
        repeats[later[cosines(block_AD[later], block_AD[at]) >= threshold]] = rows[at]


def _first_within(one_AD: np.ndarray, other_BD: np.ndarray, threshold: float) -> np.ndarray:
    """Returns for every row of `one_AD` the first row of `other_BD` within the threshold, -1 where there is none."""
    products_AB = _products(one_AD, other_BD)
    slack = _slack(one_AD)
    sure = products_AB >= threshold + slack
    first = np.where(sure.any(axis=1), sure.argmax(axis=1), len(other_BD))
    doubtful = (products_AB >= threshold - slack) & (np.arange(len(other_BD)) < first[:, None])
    places, others = np.nonzero(doubtful)
    for start in range(0, len(places), _EXACT_PAIRS):
        here, there = places[start : start + _EXACT_PAIRS], others[start : start + _EXACT_PAIRS]
        near = cosines(one_AD[here], other_BD[there]) >= threshold
        np.minimum.at(first, here[near], there[near])
    return np.where(first < len(other_BD), first, -1)


def _products(one_AD: np.ndarray, other_BD: np.ndarray) -> np.ndarray:
    return unit_rows(one_AD) @ unit_rows(other_BD).T


def _slack(features_AD: np.ndarray) -> float:
    """Returns by how much a float32 cosine can be wrong: norms, divisions, and D products and additions."""
    return float((features_AD.shape[1] + 16) * 2.0**-23)
