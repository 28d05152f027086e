"""What every student of a command learns from: the cache, the order of its rows, the views and the pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cache_schema.cache import Cache, CachedArray
from cache_schema.json_file import Json, fingerprint_of
from cache_schema.neighbours import NeighboursReader
from cache_schema.progress import Progress
from cache_schema.selections import Selection
from stages.distill.batches import BatchMaker
from stages.distill.config import ResolvedMethod
from stages.distill.held_out import HeldOut
from stages.distill.order import EpochSequence, digest_of_rows
from stages.distill.payloads import Originals, SmallPictures
from stages.distill.pictures import Pictures, PicturesInMemory
from stages.distill.replay import Replay
from stages.distill.rows import Rows
from stages.distill.streamed_pictures import PicturesStreamed
from stages.images.preprocess import CropShape

_READERS_OF_ORIGINALS = 32
"""Threads that wait for disks and servers, which answer many at a time."""


@dataclass(frozen=True)
class Feed:
    """The inputs of training, open; the same for all students that learn side by side.

    Attributes:
        cache: open.
        images: the teacher's complete image array of view 0.
        texts: the teacher's complete text array.
        neighbours: mined sentences, or None.
        image_selection: rows that images are taken from, or None.
        text_selection: rows that sentences are taken from, or None.
        sequence: order of the image rows.
        text_rows: eligible sentences, ascending.
        text_batch_size: sentences of a step.
        replay: views of the teacher that are shown again, or None.
        small: the stored pixels that are read in place of the originals, or None.
        in_memory: whether pictures are kept decoded.
        held_out: images that are never trained on, or None.
        largest: (height, width) that holds the pictures of all students, of those that have ended too: the fraction at
            which a streamed JPEG is decoded must not depend on who still learns. None until they are known.
    """

    cache: Cache
    images: CachedArray
    texts: CachedArray
    neighbours: NeighboursReader | None
    image_selection: Selection | None
    text_selection: Selection | None
    sequence: EpochSequence
    text_rows: Rows
    text_batch_size: int
    replay: Replay | None
    small: SmallPictures | None
    in_memory: bool
    held_out: HeldOut | None = None
    largest: tuple[int, int] | None = None

    def identities(self) -> dict[str, Json]:
        """Returns what the names in a method stand for: a name may come to mean something else."""
        found: dict[str, Json] = {
            "images": _identity_of(self.images),
            "texts": _identity_of(self.texts),
            "image_selection": None if self.image_selection is None else self.image_selection.digest,
            "text_selection": None if self.text_selection is None else self.text_selection.digest,
            "negatives": None if self.neighbours is None else fingerprint_of(self.neighbours.recipe.to_json()),
        }
        if self.held_out is not None:
            found["held_out"] = digest_of_rows(self.held_out.rows).hex()
        if self.replay is not None:
            found["views"] = [_identity_of(array) for array in self.replay.arrays]
        if self.small is not None:
            found["pixels"] = self.small.pixels.recipe.fingerprint
        return found

    def open_pictures(
        self,
        shapes: Sequence[CropShape],
        *,
        num_workers: int,
        progress: Progress,
        notice: Callable[[str], None] | None = None,
        of_share: bool = False,
    ) -> Pictures:
        """Returns where the pixels come from; close it after use.

        Args:
            shapes: in which every crop is wanted.
            num_workers: threads or processes.
            progress: called while pictures are loaded.
            notice: called with a sentence about pictures that had to be decoded again.
            of_share: whether only a share of every batch will be asked for; then pictures that are kept in memory are
                decoded when they are due, not all at once.
        """
        payloads = self.small or Originals()
        if self.in_memory:
            rows = self.sequence.rows[: 0 if of_share else None]
            return PicturesInMemory(self.cache, rows, shapes, payloads, num_threads=num_workers, progress=progress)
        reduce_for = self.largest if self.replay is None else None
        return PicturesStreamed(
            shapes,
            payloads,
            num_workers=num_workers,
            reduce_for=reduce_for,
            num_readers=None if self.small is not None else _READERS_OF_ORIGINALS,
            notice=notice,
        )

    def pictures_of(self, size: tuple[int, int]) -> str:
        """Returns what tells one way to the pixels of a student of `size`, (height, width), from another."""
        kept = "in memory" if self.in_memory else "streamed"
        if not self.in_memory and self.replay is None and self.largest not in (None, size):
            kept += f", scaled for {self.largest}"
        return kept if self.small is None else f"stored, {kept}"

    def batch_maker(self, pictures: Pictures, method: ResolvedMethod, share: slice | None = None) -> BatchMaker:
        """Returns what makes the batch of any step; of `method`, only what students share is looked at."""
        return BatchMaker(
            cache=self.cache,
            images=self.images,
            texts=self.texts,
            sequence=self.sequence,
            pictures=pictures,
            neighbours=self.neighbours,
            text_rows=self.text_rows,
            method=method,
            replay=self.replay,
            share=share,
        )

    def described(self) -> Sequence[str]:
        """Returns sentences for a person: what is learnt from, and which crops are seen."""
        said = [
            f"{self.sequence.batch_size:,} images and {self.text_batch_size:,} sentences a step, from "
            f"{len(self.sequence.rows):,} ok images of the {_where(self.image_selection)} and "
            f"{len(self.text_rows):,} ok sentences of the {_where(self.text_selection)}"
        ]
        if self.held_out is not None:
            said.append(
                f"{len(self.held_out.rows):,} images are held out; {self.held_out.num_measured:,} of them are measured"
            )
        if self.replay is not None or self.small is not None:
            views = "" if self.replay is None else ", ".join(str(array.recipe.view) for array in self.replay.arrays)
            crops = f"the teacher's views {views} are replayed in turn" if views else "the student draws its own crops"
            said.append(f"{crops}, cut from {'the originals' if self.small is None else 'the stored pixels'}")
        return said


def _identity_of(array: CachedArray) -> dict[str, Json]:
    return {"fingerprint": array.recipe.fingerprint, "digest": array.digest()}


def _where(selection: Selection | None) -> str:
    return "cache" if selection is None else f"selection {selection.name!r}"
