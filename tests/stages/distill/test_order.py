"""Order, resume and choice of texts, as properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema.errors import UsageError
from stages.distill.order import EpochSequence, digest_of_rows, order_of_epoch, text_generator, texts_of_step
from stages.distill.rows import RowSet, rows_by_part, rows_in_all


@st.composite
def _eligible(draw, max_rows=300):
    planned = draw(st.integers(1, max_rows))
    rows = np.flatnonzero(np.random.default_rng(draw(st.integers(0, 2**20))).random(planned) < 0.8).astype(np.int64)
    return rows if len(rows) else np.zeros(1, np.int64)


@settings(max_examples=300, deadline=None)
@given(
    rows=_eligible(),
    batch_size=st.integers(1, 300),
    part_rows=st.integers(1, 64),
    window_parts=st.none() | st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_every_epoch_visits_every_eligible_row_exactly_once(rows, batch_size, part_rows, window_parts, seed):
    batch_size = min(batch_size, len(rows))
    sequence = EpochSequence(rows, batch_size, part_rows, seed, window_parts)
    num_steps = -(-3 * len(rows) // batch_size)
    visits = [sequence.visits_of_step(step) for step in range(num_steps)]
    assert all(len(step.rows) == batch_size for step in visits)
    seen = np.concatenate([step.rows for step in visits])
    epochs = np.concatenate([step.epochs for step in visits])
    for epoch in range(3):
        assert sorted(seen[epochs == epoch].tolist()) == rows.tolist()


@settings(max_examples=200, deadline=None)
@given(rows=_eligible(), batch_size=st.integers(1, 300), seed=st.integers(0, 2**31), step=st.integers(0, 500))
def test_resuming_at_any_step_continues_the_same_sequence(rows, batch_size, seed, step):
    batch_size = min(batch_size, len(rows))
    uninterrupted = EpochSequence(rows, batch_size, 16, seed)
    for earlier in range(max(0, step - 5), step):
        uninterrupted.visits_of_step(earlier)
    resumed = EpochSequence(rows, batch_size, 16, seed)
    for ours, theirs in zip(uninterrupted.visits_of_step(step), resumed.visits_of_step(step), strict=True):
        assert np.array_equal(ours, theirs)


def test_order_changes_with_epoch_seed_and_eligible_rows():
    rows = np.arange(100)
    first = order_of_epoch(rows, part_rows=10, seed=0, epoch=0)
    assert not np.array_equal(first, order_of_epoch(rows, part_rows=10, seed=0, epoch=1))
    assert not np.array_equal(first, order_of_epoch(rows, part_rows=10, seed=1, epoch=0))
    fewer = order_of_epoch(rows[:-1], part_rows=10, seed=0, epoch=0)
    assert not np.array_equal(first[first != 99], fewer)


def test_a_window_keeps_each_stretch_of_an_epoch_within_few_parts():
    order = order_of_epoch(np.arange(1000), part_rows=50, seed=3, epoch=2, window_parts=2)
    for start in range(0, 1000, 100):
        assert len(np.unique(order[start : start + 100] // 50)) == 2
    assert len(np.unique(order[:100] // 50)) < len(
        np.unique(order_of_epoch(np.arange(1000), part_rows=50, seed=3, epoch=2)[:100] // 50)
    )


def test_a_batch_larger_than_the_eligible_rows_is_refused_with_both_numbers():
    with pytest.raises(UsageError, match="batch size 65 does not fit the 64 ok images"):
        EpochSequence(np.arange(64), 65, 16, 0)


def test_zero_eligible_rows_are_refused():
    with pytest.raises(UsageError, match="0 ok images"):
        EpochSequence(np.zeros(0, np.int64), 1, 16, 0)


@settings(max_examples=300, deadline=None)
@given(
    ok=_eligible(),
    num_images=st.integers(1, 20),
    k=st.integers(1, 8),
    fraction=st.floats(0, 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    mined=st.booleans(),
)
def test_texts_of_a_step_are_exactly_as_many_distinct_ok_rows(ok, num_images, k, fraction, share, seed, mined):
    num_texts = max(1, int(fraction * len(ok)))
    neighbours = np.random.default_rng(seed).integers(-1, 400, (num_images, k)) if mined else None
    images = np.arange(num_images)

    def choose():
        rng = text_generator(digest_of_rows(ok), seed=seed, step=7)
        return texts_of_step(images, neighbours, RowSet(ok), rng, num_texts, mined_share=share)

    texts = choose()
    assert len(texts) == num_texts == len(np.unique(texts))
    assert np.isin(texts, ok).all()
    assert np.array_equal(texts, choose())


def test_neighbours_are_taken_round_robin_by_rank_up_to_the_share():
    neighbours = np.array([[10, 11, 12], [20, 10, 22], [30, -1, 99]])
    texts = texts_of_step(
        np.arange(3), neighbours, RowSet(np.arange(50)), np.random.default_rng(0), 10, mined_share=0.5
    )
    assert texts[:5].tolist() == [10, 20, 30, 11, 12]
    assert not np.isin(texts[5:], [10, 20, 30, 11, 12]).any()


def test_a_share_that_neighbours_cannot_fill_is_filled_at_random():
    texts = texts_of_step(np.arange(1), np.array([[4, -1]]), RowSet(np.arange(50)), np.random.default_rng(0), 30)
    assert texts[0] == 4 and len(np.unique(texts)) == 30


def test_texts_differ_between_steps_and_seeds():
    def draw(seed, step):
        rng = text_generator(b"0123456789abcdef", seed=seed, step=step)
        return texts_of_step(np.arange(1), None, RowSet(np.arange(1000)), rng, 20).tolist()

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(0, 1)
    assert draw(0, 0) != draw(1, 0)


def test_more_texts_than_ok_rows_are_refused_with_both_numbers():
    with pytest.raises(UsageError, match="text batch size 6 does not fit the 5 ok sentences"):
        texts_of_step(np.arange(1), None, RowSet(np.arange(5)), np.random.default_rng(0), 6)


def test_a_set_of_rows_knows_its_rows_and_what_it_shares_as_numpy_does() -> None:
    rng = np.random.default_rng(5)
    one, other, third = (np.flatnonzero(rng.random(300) < share) for share in (0.5, 0.8, 0.9))
    asked = np.concatenate([[-1, -300, 300, 10**9], rng.integers(-5, 400, 200)])
    assert RowSet(one).contains(asked).tolist() == np.isin(asked, one).tolist()
    assert rows_in_all(one, other, third).tolist() == sorted({*one} & {*other} & {*third})
    nothing = np.zeros(0, np.int64)
    assert not RowSet(nothing).contains(asked).any()
    assert rows_in_all(one, nothing).tolist() == rows_in_all(nothing, one).tolist() == []


@settings(max_examples=200, deadline=None)
@given(ok=_eligible(), num_images=st.integers(0, 40), k=st.integers(0, 9), seed=st.integers(0, 2**20), data=st.data())
def test_mined_texts_are_the_first_distinct_ok_ones_of_all_ranks_in_turn(ok, num_images, k, seed, data):
    neighbours = np.random.default_rng(seed).integers(-1, max(4, ok[-1] // 3), (num_images, k))
    at_most = data.draw(st.integers(1, len(ok)))
    expected: list[int] = []
    for rank in range(k):
        for image in range(num_images):
            row = int(neighbours[image, rank])
            if row in ok and row not in expected and len(expected) < at_most:
                expected.append(row)
    found = texts_of_step(
        np.arange(num_images), neighbours, RowSet(ok), np.random.default_rng(0), at_most, mined_share=1.0
    ).tolist()
    assert found[: len(expected)] == expected
    assert not set(found[len(expected) :]) & set(expected)


@settings(max_examples=100, deadline=None)
@given(rows=_eligible(), part_rows=st.integers(1, 64))
def test_rows_by_part_are_those_of_division(rows, part_rows):
    found = {part: some.tolist() for part, some in rows_by_part(rows, part_rows)}
    assert found == {p: [r for r in rows.tolist() if r // part_rows == p] for p in (rows // part_rows).tolist()}
    assert list(rows_by_part(rows[:0], part_rows)) == []


def test_the_order_of_an_epoch_is_the_one_it_always_was():
    # Written down from the version before parts were searched for.
    rows = np.flatnonzero(np.arange(1000) % 7)
    full = order_of_epoch(rows, part_rows=64, seed=3, epoch=2)
    windows = order_of_epoch(rows, part_rows=64, seed=3, epoch=2, window_parts=4)
    assert [digest_of_rows(order).hex()[:16] for order in (full, windows)] == ["12aa4190dce2a1ac", "e7685772d0db474a"]
