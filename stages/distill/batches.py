"""Batches: the pictures, features and sentences of one training step.

A batch is a pure function of the step: the same rows, crops and features come whatever the number of workers, and
whether or not the run was stopped before.

Shape letters: B images of a batch, T sentences of a batch, D width of a feature, H and W pixels, C colours, P bytes of
pixels of one image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cache_schema.cache import Cache, CachedArray, ImageLocation
from cache_schema.neighbours import NeighboursReader
from stages.distill.config import ResolvedMethod
from stages.distill.meter import Meter, phase
from stages.distill.order import EpochSequence, Visits, digest_of_rows, text_generator, texts_of_step
from stages.distill.pictures import BegunCrops, Pictures
from stages.distill.replay import Replay
from stages.distill.rows import Rows, RowSet
from stages.images.crops import Crop, crops_of
from stages.images.preprocess import CropShape


@dataclass(frozen=True)
class Batch:
    """The inputs of one step.

    Attributes:
        step: from 0.
        rows: image rows, shape (B,).
        pixels: uint8 BHWC by shape, one crop of every image of this process's share, in their order; views of
            `pixels_BP`.
        pixels_BP: the same bytes in one piece: of all shapes of the first image, of the second, …
        teacher_image_BD: float32, unit norm, the teacher's features of the same images.
        text_TD: float32, unit norm, the teacher's features of the step's sentences.
        seconds: that it took to make, by phase.
    """

    step: int
    rows: Rows
    pixels: Mapping[CropShape, NDArray[np.uint8]]
    pixels_BP: NDArray[np.uint8]
    teacher_image_BD: NDArray[np.float32]
    text_TD: NDArray[np.float32]
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BegunBatch:
    """A batch whose pictures are being made: those of `own`, which is all of `visits` or the share of this process."""

    step: int
    visits: Visits
    own: Visits
    locations: Sequence[ImageLocation]
    to_check: NDArray[np.bool_]
    pictures: BegunCrops
    teacher_image_BD: NDArray[np.float32]
    text_TD: NDArray[np.float32]
    replay: Replay | None
    seconds: Mapping[str, float]

    def result(self) -> Batch:
        """Returns the batch when its pictures are there.

        Raises:
            MismatchError: an original picture changed since the teacher saw it, or a replayed view has other pixels.
            DamagedError: the cache changed or is damaged.
        """
        cut = self.pictures.result()
        if self.replay is not None:
            checked = self.to_check
            compared = [location for location, wanted in zip(self.locations, checked, strict=True) if wanted]
            rows, epochs = self.own
            self.replay.compare(rows[checked], epochs[checked], cut.checks_B4[checked], compared)
        return Batch(
            step=self.step,
            rows=self.visits.rows,
            pixels=cut.pixels,
            pixels_BP=cut.pixels_BP,
            teacher_image_BD=self.teacher_image_BD,
            text_TD=self.text_TD,
            seconds={**self.seconds, **cut.seconds},
        )


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of any step.

    Attributes:
        cache: open; its arrays are complete.
        images: the teacher's image array.
        texts: the teacher's text array.
        sequence: order of the image rows.
        pictures: where pixels come from.
        neighbours: mined sentences of every image; None draws all at random.
        text_rows: eligible sentences, ascending.
        method: how many sentences a step has and which, and how crops are drawn.
        replay: views of the teacher that are shown again; None draws crops anew for every visit.
        share: rows of a batch whose pictures this process shows to students; None for all.
    """

    cache: Cache
    images: CachedArray
    texts: CachedArray
    sequence: EpochSequence
    pictures: Pictures
    neighbours: NeighboursReader | None
    text_rows: Rows
    method: ResolvedMethod
    replay: Replay | None = None
    share: slice | None = None

    @cached_property
    def _text_rows_digest(self) -> bytes:
        return digest_of_rows(self.text_rows)

    @cached_property
    def _ok_texts(self) -> RowSet:
        return RowSet(self.text_rows)

    def batch_of_step(self, step: int) -> Batch:
        """Returns the batch of global `step`, from 0; raises as `begin` and its result do."""
        return self.begin(step).result()

    def begin(self, step: int) -> "BegunBatch":
        """Returns the batch of global `step`, from 0, all but its pictures, which are being made.

        Raises:
            DamagedError: the cache changed or is damaged.
        """
        meter = Meter()
        with meter.open(), phase("gather"):
            visits = self.sequence.visits_of_step(step)
            own = visits if self.share is None else Visits(visits.rows[self.share], visits.epochs[self.share])
            locations = self.cache.locations(own.rows)
            replay = self.replay
            if replay is None:
                crops = self._crops(locations, own.epochs)
                to_check = np.zeros(len(own.rows), bool)
            else:
                crops = replay.crops(locations, own.epochs)
                to_check = replay.not_yet_seen(own.rows, own.epochs)
            # Begun before the features are gathered, so that workers have something to do meanwhile.
            pictures = self.pictures.begin(own.rows, locations, crops, to_check)
            if replay is None:
                teacher_image_BD = self.images.features.gather_unit(visits.rows)
            else:
                teacher_image_BD = replay.features(visits.rows, visits.epochs)
            text_TD = self.texts.features.gather_unit(self._texts_of_step(step, visits.rows))
        return BegunBatch(
            step=step,
            visits=visits,
            own=own,
            locations=locations,
            to_check=to_check,
            pictures=pictures,
            teacher_image_BD=teacher_image_BD,
            text_TD=text_TD,
            replay=replay,
            seconds=meter.taken(),
        )

    def _crops(self, locations: Sequence[ImageLocation], epochs: Rows) -> list[Crop]:
        # View 0 is the teacher's own preprocessing, so the first epoch sees view 1.
        return crops_of(
            self.method.seed,
            (epochs + 1).tolist(),
            [location.digest for location in locations],
            widths=[location.width for location in locations],
            heights=[location.height for location in locations],
            scale=(self.method.min_crop, 1.0),
            flip=self.method.flip,
        )

    def _texts_of_step(self, step: int, image_rows: Rows) -> Rows:
        return texts_of_step(
            image_rows,
            None if self.neighbours is None else self.neighbours.ids(image_rows),
            self._ok_texts,
            text_generator(self._text_rows_digest, seed=self.method.seed, step=step),
            self.method.text_batch_size,
            mined_share=self.method.mined_share,
        )
