"""The linear map of the composed teacher, against least squares on the penalty written out as data."""

import numpy as np
import pytest

from pipeline.demo.alignment import Alignment, cross_fitted_features, fit_alignment


@pytest.fixture
def pooled_and_names() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.gamma(2.0, size=(60, 24)).astype(np.float32), rng.normal(size=(60, 8)).astype(np.float32)


def test_the_map_is_ridge_regression_with_the_penalty_per_picture(pooled_and_names: tuple[np.ndarray, ...]) -> None:
    pooled, names = (values.astype(np.float64) for values in pooled_and_names)
    standard = (pooled - pooled.mean(axis=0)) / pooled.std(axis=0)
    penalty = np.sqrt(0.3 * len(standard)) * np.eye(standard.shape[1])
    centred = names - names.mean(axis=0)
    reference, *_ = np.linalg.lstsq(
        np.vstack([standard, penalty]), np.vstack([centred, np.zeros((len(penalty), names.shape[1]))]), rcond=None
    )

    fitted = fit_alignment(*pooled_and_names, ridge=0.3)

    np.testing.assert_allclose(fitted.weights_FD, reference, atol=1e-5)


def test_features_of_pictures_and_texts_have_unit_norm(pooled_and_names: tuple[np.ndarray, ...]) -> None:
    pooled, names = pooled_and_names
    fitted = fit_alignment(pooled, names)

    for features in (fitted.image_features(pooled), fitted.text_features(names)):
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_a_map_read_back_from_its_bytes_gives_the_same_features(pooled_and_names: tuple[np.ndarray, ...]) -> None:
    pooled, names = pooled_and_names
    fitted = fit_alignment(pooled, names)

    again = Alignment.from_bytes(fitted.to_bytes())

    np.testing.assert_array_equal(again.image_features(pooled), fitted.image_features(pooled))
    np.testing.assert_array_equal(again.text_features(names), fitted.text_features(names))


def test_a_cross_fitted_feature_does_not_know_its_own_pictures_name(pooled_and_names: tuple[np.ndarray, ...]) -> None:
    pooled, names = pooled_and_names
    renamed = names.copy()
    renamed[7] = 100.0

    before = cross_fitted_features(pooled, names, num_folds=5, seed=0)
    after = cross_fitted_features(pooled, renamed, num_folds=5, seed=0)

    np.testing.assert_array_equal(after[7], before[7])
    assert (after != before).any(axis=1).sum() >= 40
