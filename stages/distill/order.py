"""The order of training: pure functions from (eligible rows, seed, step) to rows, in NumPy, with no state.

Epochs follow each other without a gap: step s of batch size B sees the places s·B to (s+1)·B of the endless sequence
epoch 0, epoch 1, … So batches are always full, every epoch visits every eligible row exactly once, and resuming is one
integer. A batch that spans the end of an epoch may hold a row twice, as two visits with different crops.

Nothing here depends on the number of workers: they divide the same global batch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_schema.errors import UsageError
from stages.distill.rows import Rows, RowSet, rows_by_part

_IMAGE_ORDER, _TEXT_DRAW = 1, 2


class Visits(NamedTuple):
    """The image rows of one step, and for each the epoch that this visit belongs to."""

    rows: Rows
    epochs: Rows


def digest_of_rows(rows: Rows) -> bytes:
    """Returns 16 bytes that tell whether two lists of eligible rows are the same."""
    return hashlib.blake2b(np.ascontiguousarray(rows, "<i8").data, digest_size=16).digest()


def order_of_epoch(rows: Rows, *, part_rows: int, seed: int, epoch: int, window_parts: int | None = None) -> Rows:
    """Returns a permutation of `rows` for one epoch.

    Parts are shuffled, then rows within each window of `window_parts` consecutive shuffled parts; None means one window
    over all parts, a full shuffle. A small window lets tars be read almost in sequence.

    Args:
        rows: eligible rows, ascending, no row twice.
        part_rows: rows per part of the cache.
        seed: the seed of the run.
        epoch: from 0.
        window_parts: parts per window.
    """
    generator = np.random.default_rng([_IMAGE_ORDER, *_words(digest_of_rows(rows)), seed, epoch])
    by_part = [of_part for _, of_part in rows_by_part(rows, part_rows)]
    shuffled = [by_part[place] for place in generator.permutation(len(by_part))]
    window_parts = window_parts or len(by_part) or 1
    windows = (shuffled[first : first + window_parts] for first in range(0, len(shuffled), window_parts))
    return np.concatenate([np.zeros(0, np.int64), *(generator.permutation(np.concatenate(w)) for w in windows)])


@dataclass(frozen=True)
class EpochSequence:
    """The endless sequence of shuffled epochs over the eligible `rows`, cut into batches of `batch_size`.

    Keeps the last two epochs only to save time; what it returns depends on its fields alone.

    Raises:
        UsageError: there are fewer rows than a batch needs.
    """

    rows: Rows
    batch_size: int
    part_rows: int
    seed: int
    window_parts: int | None = None
    _recent: dict[int, Rows] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.rows):
            raise UsageError(
                f"batch size {self.batch_size:,} does not fit the {len(self.rows):,} ok images of the cache: "
                f"use a batch size from 1 to {len(self.rows):,}"
                if len(self.rows)
                else "the cache has 0 ok images, so there is nothing to train on: extract some that can be read"
            )

    def visits_of_step(self, step: int) -> Visits:
        """Returns the image rows of global `step` (from 0), and the epoch of each."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(places, len(self.rows))
        rows = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._epoch(int(epoch))[offsets[here]]
        return Visits(rows, epochs)

    def _epoch(self, epoch: int) -> Rows:
        if epoch not in self._recent:
            for old in [old for old in self._recent if old != epoch - 1]:
                del self._recent[old]
            self._recent[epoch] = order_of_epoch(
                self.rows, part_rows=self.part_rows, seed=self.seed, epoch=epoch, window_parts=self.window_parts
            )
        return self._recent[epoch]


def text_generator(ok_text_digest: bytes, *, seed: int, step: int) -> np.random.Generator:
    """Returns the generator that `texts_of_step` draws from in global `step`, given the digest of the ok text rows."""
    return np.random.default_rng([_TEXT_DRAW, *_words(ok_text_digest), seed, step])


def texts_of_step(
    image_rows: Rows,
    neighbours: NDArray[np.int64] | None,
    ok_texts: RowSet,
    rng: np.random.Generator,
    num_texts: int,
    *,
    mined_share: float = 0.5,
) -> Rows:
    """Returns exactly `num_texts` distinct ok text rows for a step with these images.

    First the images' neighbours, round-robin by rank (the best of every image, then the second of every image, …), up
    to the share `mined_share`; the rest drawn at random among all others, without replacement.

    Args:
        image_rows: the images of the step, shape (B,).
        neighbours: mined text rows of each, best first, shape (B, k), −1 where there are none; None when nothing
            was mined. Rows that are not ok are skipped.
        ok_texts: eligible text rows.
        rng: where the random rest is drawn from.
        num_texts: how many rows to return.
        mined_share: at most this part of `num_texts` are neighbours.

    Raises:
        UsageError: there are fewer ok text rows than `num_texts`.
    """
    if not 1 <= num_texts <= len(ok_texts):
        raise UsageError(
            f"text batch size {num_texts:,} does not fit the {len(ok_texts):,} ok sentences of the cache: "
            f"use a text batch size from 1 to {len(ok_texts):,}"
            if len(ok_texts)
            else "the cache has 0 ok sentences, so there is nothing to compare images with: extract some"
        )
    mined = np.zeros(0, np.int64)
    if neighbours is not None:
        assert len(neighbours) == len(image_rows), (len(neighbours), len(image_rows))
        mined = _best_of_all(neighbours, ok_texts, int(mined_share * num_texts))
    # At most len(mined) of num_texts distinct draws can be neighbours already, so enough are left.
    drawn = ok_texts.rows[rng.choice(len(ok_texts), num_texts, replace=False)]
    rest = drawn[~np.isin(drawn, mined)][: num_texts - len(mined)]
    return np.concatenate([mined, rest])


def _best_of_all(neighbours: NDArray[np.int64], ok_texts: RowSet, at_most: int) -> Rows:
    """Returns the first `at_most` distinct ok rows in the order best of every image, second of every image, …"""
    num_ranks = 1
    while True:
        # A few of many ranks are enough as a rule.
        by_rank = neighbours[:, :num_ranks].T.ravel()
        distinct, first_places = np.unique(by_rank[ok_texts.contains(by_rank)], return_index=True)
        if len(distinct) >= at_most or num_ranks >= neighbours.shape[1]:
            return distinct[np.argsort(first_places)][:at_most]
        num_ranks *= 2


def _words(digest: bytes) -> Iterator[int]:
    return (int.from_bytes(digest[start : start + 8], "little") for start in range(0, len(digest), 8))
