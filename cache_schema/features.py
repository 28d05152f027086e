"""Features: unit vectors in float16, one row per planned sample, read without decoding anything."""

import numpy as np

from cache_schema.errors import RefusedError, UsageError
from cache_schema.shards import RowFormat, RowReader

NORM_TOLERANCE = 1e-3
"""How far the norm of a stored feature may be from 1: float16 rounding of 1,000 values, with room."""

NOT_FINITE = "feature-not-finite"
ZERO_NORM = "feature-zero-norm"


def feature_format(part_rows: int, dim: int) -> RowFormat:
    """Returns the shard format of an array of `dim`-wide features."""
    return RowFormat(part_rows, dim, "float16")


class FeatureReader(RowReader):
    """Reads the features of one array: `gather` and `read_part` give float16 rows, NaN where a sample is bad."""

    def gather_unit(self, rows: np.ndarray) -> np.ndarray:
        """Returns the given rows as float32 of norm 1 to float32 rounding, shape (len(rows), dim).

        Raises:
            UsageError: a row has no feature.
            PipelineError: as `gather`.
        """
        # Once to float32 and once over it for the norms: at a batch of thousands this costs more than the gather.
        features_BD = self.gather(rows).astype(np.float32)
        norms = np.linalg.norm(features_BD, axis=1, keepdims=True)
        _require_present(norms[:, 0], rows)
        features_BD /= norms
        return features_BD


def present(features_BD: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns `features_BD`, those of `rows`; raises `UsageError` where one is not finite or zero: its row has none."""
    _require_present(np.linalg.norm(features_BD.astype(np.float32), axis=1), rows)
    return features_BD


def _require_present(norms: np.ndarray, rows: np.ndarray) -> None:
    absent = ~np.isfinite(norms) | (norms == 0)
    if absent.any():
        raise UsageError(f"row {np.asarray(rows)[absent][0]} has no feature: ask for ok rows only")


def unit_rows(features_BD: np.ndarray) -> np.ndarray:
    """Returns `features_BD`, shape (B, D), as float32 rows of norm 1. Rows must be finite and not zero."""
    features = np.asarray(features_BD, np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def storable(features_BD: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Returns unit float16 rows as the cache stores them, and for each row that cannot be stored its status.

    Args:
        features_BD: what a teacher gave, shape (B, D), any float type, any norm.

    Returns:
        float16 of shape (B, D), NaN in the refused rows, and row -> "feature-not-finite" or "feature-zero-norm".
    """
    wide = np.asarray(features_BD, np.float64)
    norms = np.linalg.norm(wide, axis=1)
    refused = {int(row): NOT_FINITE for row in np.flatnonzero(~np.isfinite(norms))}
    refused |= {int(row): ZERO_NORM for row in np.flatnonzero(norms == 0)}
    rows = list(refused)
    norms[rows] = 1.0
    stored = (wide / norms[:, None]).astype(np.float16)
    stored[rows] = np.nan
    return stored, refused


def usable_unit_rows(features: np.ndarray, what: str) -> np.ndarray:
    """Returns `features`, shape (B, D), as float32 rows of norm 1; raises `RefusedError` when `what` has none such."""
    norms = np.linalg.norm(features, axis=1)
    if not (np.isfinite(norms).all() and norms.all()):
        raise RefusedError(
            f"the model gives no usable feature for {what}: its weights, precision or device are at fault"
        )
    return unit_rows(features)
