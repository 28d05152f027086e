"""Sets of rows: ascending row numbers, none twice, asked without sorting or searching, whatever their number."""

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
