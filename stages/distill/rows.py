"""Sets of rows: ascending row numbers, none twice, asked without sorting or searching, whatever their number."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class RowSet:
    """The `rows` of a set, and for every row number up to the largest one whether it is among them: a byte each."""

    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def contains(self, values: Rows) -> NDArray[np.bool_]:
        """Returns whether each of `values` is in the set; negative ones never are."""
        within = (values >= 0) & (values < len(self._flags))
        return within & self._flags[np.where(within, values, 0)]

    @cached_property
    def _flags(self) -> NDArray[np.bool_]:
        flags = np.zeros(int(self.rows[-1]) + 1 if len(self.rows) else 1, bool)
        flags[self.rows] = True
        return flags


def rows_in_all(first: Rows, *others: Rows) -> Rows:
    """Returns the rows of `first` that all `others` have too, ascending."""
    return reduce(lambda rows, other: rows[RowSet(other).contains(rows)], others, first)


def rows_by_part(rows: Rows, part_rows: int) -> Iterator[tuple[int, Rows]]:
    """Yields the number of every part that has some of `rows`, which are ascending, and those rows, in order."""
    if not len(rows):
        return
    first, last = int(rows[0]) // part_rows, int(rows[-1]) // part_rows
    # Searched for in the list: comparing every row with every part takes minutes at thousands of parts.
    edges = np.searchsorted(rows, np.arange(first, last + 2) * part_rows)
    for part, start, end in zip(range(first, last + 1), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if start < end:
            yield part, rows[start:end]
