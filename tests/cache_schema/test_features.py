"""Stored features are unit rows, and what cannot be stored gets a status."""

import numpy as np

from cache_schema.features import storable, unit_rows


def test_stored_features_are_unit_and_what_cannot_be_stored_gets_a_status() -> None:
    features = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32) * 1e4
    features[1], features[2, 0], features[3, 0] = 0, np.nan, np.inf
    stored, refused = storable(features)
    assert refused == {1: "feature-zero-norm", 2: "feature-not-finite", 3: "feature-not-finite"}
    good = stored[[0, 4, 5]]
    assert np.abs(np.linalg.norm(good.astype(np.float32), axis=1) - 1).max() < 1e-3
    assert np.abs(np.linalg.norm(unit_rows(good), axis=1) - 1).max() < 1e-6
    assert np.isnan(stored[[1, 2, 3]]).all()
