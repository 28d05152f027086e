"""Whether neighbours are those of the features that they name: what a seal and checksums cannot tell.

Every id is one of a row that the other array has, and the scores of some rows are compared with the cosines of their
features, so that shards that were exchanged under records sealed anew are found out by whoever reads a neighbour.
"""

from dataclasses import dataclass

import numpy as np

from cache_schema.cache import CachedArray
from cache_schema.errors import DamagedError
from cache_schema.shards import RowReader

_SAMPLED_ROWS = 16
_TOLERANCE = 0.01
"""How far a stored cosine may be from that of the features: float16 in lists and scores, with room."""

AGAIN = "mine them again under a new name"


@dataclass(frozen=True, eq=False)
class MinedRows:
    """The neighbours of the rows of one part.

    Attributes:
        where: names the neighbours, for messages.
        part: the number of the part.
        from_: the array whose rows have neighbours.
        to: the array that the neighbours are rows of.
        can_be_found: whether a row of `to` could be a neighbour, by row number.
        scores: the reader of the scores.
    """

    where: str
    part: int
    from_: CachedArray
    to: CachedArray
    can_be_found: np.ndarray
    scores: RowReader

    def require(self, first: int, ids_RK: np.ndarray) -> None:
        """Raises `DamagedError` unless `ids_RK` can be the neighbours of the rows from offset `first` on."""
        record = self.from_.record(self.part)
        is_ok = np.ones(record.num_rows, bool)
        is_ok[list(record.bad)] = False
        is_ok = is_ok[first : first + len(ids_RK)]
        ids_RK = ids_RK[: len(is_ok)]
        rows = self.part * self.from_.cache.part_rows + first + np.arange(len(is_ok))
        for at in np.flatnonzero((ids_RK >= 0).any(axis=1) != is_ok):
            raise self._wrong(f"row {rows[at]} has {'no ' if is_ok[at] else ''}neighbours, and {self._says(is_ok[at])}")
        rows, ids_RK = rows[is_ok], ids_RK[is_ok]
        outside = (ids_RK < 0) | (ids_RK >= len(self.can_be_found))
        outside[~outside] = ~self.can_be_found[ids_RK[~outside]]
        if outside.any():
            raise self._wrong(f"they name row {ids_RK[outside][0]} of {self.to}, which has no feature for them")
        if len(rows):
            self._require_scores(rows, ids_RK)

    def _require_scores(self, rows: np.ndarray, ids_RK: np.ndarray) -> None:
        some = np.unique(np.linspace(0, len(rows) - 1, _SAMPLED_ROWS).astype(np.int64))
        asked_SD = self.from_.features.gather_unit(rows[some])
        for column in (0, -1):
            found_SD = self.to.features.gather_unit(ids_RK[some, column])
            scores = self.scores.gather(rows[some])[:, column].astype(np.float32)
            cosines = (asked_SD * found_SD).sum(axis=1)
            # A comparison with nan is false.
            for at in np.flatnonzero(~(np.abs(scores - cosines) <= _TOLERANCE)):
                raise self._wrong(
                    f"row {rows[some][at]} and its neighbour {ids_RK[some, column][at]} have cosine {cosines[at]:.3f}, "
                    f"stored is {scores[at]:.3f}"
                )

    def _says(self, is_ok: bool) -> str:
        return f"{self.from_} has {'a' if is_ok else 'no'} feature of it"

    def _wrong(self, what: str) -> DamagedError:
        return DamagedError(f"{self.where} of part {self.part} are not those that were mined ({what}): {AGAIN}")
