"""Near duplicates by the greedy rule, against a brute-force reference in float64."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema.features import storable
from stages.search import near_duplicates as module
from stages.search.near_duplicates import cosines, near_duplicates


class Features:
    """Stored features of an array that is nowhere on disk."""

    def __init__(self, features: np.ndarray) -> None:
        self.stored = storable(features)[0]
        self.shape = self.stored.shape

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.stored[rows]

    def gather_unit(self, rows: np.ndarray) -> np.ndarray:
        wide = self.stored[rows].astype(np.float32)
        return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def greedy(stored: np.ndarray, rows: np.ndarray, threshold: float) -> tuple[list[int], dict[int, int]]:
    """Returns the kept rows, and for every dropped one the earliest kept row within the threshold: the rule itself."""
    wide = stored.astype(np.float64)
    kept: list[int] = []
    repeats: dict[int, int] = {}
    for row in rows.tolist():
        for other in kept:
            lengths = np.dot(wide[row], wide[row]) * np.dot(wide[other], wide[other])
            if np.dot(wide[row], wide[other]) / np.sqrt(lengths) >= threshold:
                repeats[row] = other
                break
        else:
            kept.append(row)
    return kept, repeats


def crowded(seed: int, num_rows: int, dim: int, num_centres: int, noise: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num_centres, dim))
    return centres[rng.integers(num_centres, size=num_rows)] + noise * rng.standard_normal((num_rows, dim))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(0, 40),
    dim=st.integers(1, 6),
    num_centres=st.integers(1, 8),
    noise=st.sampled_from([0.0, 0.01, 0.3]),
    threshold=st.sampled_from([0.5, 0.9, 0.99, 0.9999, 1.0]),
    block_rows=st.sampled_from([1, 3, 7, 64]),
    left_out=st.sets(st.integers(0, 39), max_size=5),
)
def test_the_greedy_rule_is_kept_whatever_the_blocks(
    seed: int,
    num_rows: int,
    dim: int,
    num_centres: int,
    noise: float,
    threshold: float,
    block_rows: int,
    left_out: set[int],
) -> None:
    features = Features(crowded(seed, num_rows, dim, num_centres, noise))
    rows = np.array(sorted(set(range(num_rows)) - left_out), np.int64)
    kept, repeats = greedy(features.stored, rows, threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_ROWS", block_rows)
        found = near_duplicates(features, rows, threshold)
    assert found.kept.tolist() == kept
    assert dict(zip(found.dropped.tolist(), found.repeats.tolist(), strict=True)) == repeats
    assert found.search == {"kind": "exact"}


def test_a_threshold_that_is_the_cosine_of_two_rows_itself_drops_the_later() -> None:
    features = Features(crowded(3, 2, 8, 1, 0.2))
    (cosine,) = cosines(features.stored[:1], features.stored[1:])
    assert near_duplicates(features, np.arange(2), float(cosine)).kept.tolist() == [0]
    assert near_duplicates(features, np.arange(2), float(np.nextafter(cosine, 2))).kept.tolist() == [0, 1]


def test_equal_rows_have_cosine_one_exactly() -> None:
    stored = Features(np.random.default_rng(0).standard_normal((500, 37))).stored
    assert (cosines(stored, stored) == 1).all()


def test_a_row_near_a_dropped_row_only_is_kept() -> None:
    angles = np.radians([0, 20, 40])
    features = Features(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    found = near_duplicates(features, np.arange(3), float(np.cos(np.radians(25))))
    assert found.kept.tolist() == [0, 2] and found.repeats.tolist() == [0]


def test_many_rows_are_searched_approximately_drop_no_row_wrongly_and_say_what_was_missed() -> None:
    features = Features(crowded(1, 6_000, 16, 1_500, 0.02))
    rows = np.arange(6_000)
    exact = near_duplicates(features, rows, 0.98)
    found = near_duplicates(features, rows, 0.98, exact_up_to_rows=5_999)
    assert (cosines(features.stored[found.dropped], features.stored[found.repeats]) >= 0.98).all()
    assert (found.repeats < found.dropped).all() and np.isin(found.repeats, found.kept).all()
    assert found.search["kind"] == "approximate" and found.search["checked_kept_rows"] == 1_000
    assert len(exact.kept) <= len(found.kept) <= 1.02 * len(exact.kept)
    assert found.search["missed_among_checked"] <= 20


def test_the_approximate_search_says_how_many_of_its_kept_rows_should_have_been_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_NUM_PROBES", 1)
    features = Features(crowded(2, 3_000, 16, 400, 0.15))
    found = near_duplicates(features, np.arange(3_000), 0.8, exact_up_to_rows=0)
    kept = features.stored[found.kept].astype(np.float64)
    unit = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    repeating = (np.tril(unit @ unit.T, k=-1) >= 0.8).any(axis=1)
    checked = np.random.default_rng(1).permutation(len(kept))[:1_000]
    assert found.search["missed_among_checked"] == repeating[checked].sum() > 0


@pytest.mark.campaign
def test_a_hundred_thousand_rows_are_compared_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    features = Features(crowded(4, 100_000, 512, 60_000, 0.01))
    tracemalloc.start()
    found = near_duplicates(features, np.arange(100_000), 0.95)
    _, peak = tracemalloc.get_traced_memory()
    assert 40_000 < len(found.kept) < 60_000
    assert peak < 200 << 20, f"{peak:,} bytes"
