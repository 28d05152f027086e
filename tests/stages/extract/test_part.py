"""A part in progress keeps what the teacher gave for each of its rows, and what is to be said of them."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cache_schema.commit import ArrayTarget
from cache_schema.features import feature_format
from cache_schema.layout import Layout
from cache_schema.records import RowException
from stages.extract.part import ArrayInProgress, ArrayOutput
from stages.images.views import ViewRule


def in_progress(num_rows: int, *, dim: int = 4, rule: ViewRule | None = None) -> ArrayInProgress:
    target = ArrayTarget(Layout(Path("/nowhere")), "image", "a.v0", feature_format(16, dim), "0" * 64)
    return ArrayInProgress(ArrayOutput(target, rule), num_rows)


def unit_rows(num_rows: int) -> np.ndarray:
    """Returns float32 rows of norm 1 by NumPy alone."""
    rows = np.random.default_rng(0).standard_normal((num_rows, 4))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_rows_that_nobody_encoded_are_not_a_number() -> None:
    array = in_progress(3)
    assert array.features_BD.shape == (3, 4) and array.features_BD.dtype == np.float16
    assert np.isnan(array.features_BD).all() and array.exceptions == {}
    assert in_progress(0).features_BD.shape == (0, 4)


def test_features_are_kept_at_their_rows_as_float16_of_unit_norm_and_padding_is_dropped() -> None:
    array = in_progress(5)
    batch = unit_rows(4)
    array.store([3, 1], 7 * batch)
    expected = np.full((5, 4), np.nan, np.float32)
    expected[[3, 1]] = batch[:2]
    np.testing.assert_allclose(array.features_BD, expected, atol=1e-3)


def test_a_feature_that_cannot_be_stored_is_an_exception_of_its_own_row() -> None:
    array = in_progress(9)
    batch = unit_rows(4)
    batch[0], batch[2, 1], batch[3] = 0.0, np.inf, np.nan  # the last one is padding
    array.store([8, 2, 5], batch)
    assert array.exceptions == {
        8: RowException(8, "feature-zero-norm", ""),
        5: RowException(5, "feature-not-finite", ""),
    }
    assert np.flatnonzero(np.isfinite(array.features_BD).all(axis=1)).tolist() == [2]


def test_an_array_that_is_no_crop_has_no_view_checks() -> None:
    array = in_progress(2)
    array.store_checks([0, 1], [b"abcd", b"efgh"], 0)
    assert array.view_checks is None


def test_the_checks_of_a_view_are_its_own_four_bytes_and_zeros_where_there_is_no_feature() -> None:
    array = in_progress(4, rule=ViewRule(2, 0))
    array.store_checks([3, 0, 1], [b"aaaaAAAA", b"bbbbBBBB", b"ccccCCCC"], 1)
    batch = unit_rows(3)
    batch[2] = 0
    array.store([3, 0, 1], batch)
    assert array.view_checks == b"BBBB" + bytes(4) + bytes(4) + b"AAAA"
    assert array.view_checks == b"BBBB" + bytes(4) + bytes(4) + b"AAAA", "asking changes nothing"


def test_checks_that_are_more_or_fewer_than_their_rows_are_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        in_progress(4, rule=ViewRule(1, 0)).store_checks([0, 1], [b"abcd"], 0)


def teacher_reading(length: int | None, counts: Sequence[int] | None) -> SimpleNamespace:
    return SimpleNamespace(context_length=length, count_tokens=lambda texts: counts)


def test_only_a_sentence_that_is_cut_is_noted_and_stays_ok() -> None:
    array = in_progress(9)
    array.note_truncation([7, 4, 2], ["a", "b", "c"], teacher_reading(16, [16, 17, 3]))  # type: ignore[arg-type]
    assert array.exceptions == {4: RowException(4, "ok", "truncated: 17 tokens")}


@pytest.mark.parametrize(("length", "counts"), [(None, [99]), (16, None)])
def test_a_teacher_that_cannot_say_how_much_it_reads_cuts_nothing_that_could_be_noted(
    length: int | None, counts: list[int] | None
) -> None:
    array = in_progress(1)
    array.note_truncation([0], ["a"], teacher_reading(length, counts))  # type: ignore[arg-type]
    assert array.exceptions == {}
