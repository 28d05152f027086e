"""Images that are never trained on, and what a student makes of them while it learns.

Shape letters: B images of a batch, N held-out images, T sentences, D width of a feature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from cache_schema.cache import Cache, CachedArray, ImageLocation
from cache_schema.errors import EnvironmentProblem, UsageError
from cache_schema.features import usable_unit_rows
from stages.distill.config import ResolvedMethod
from stages.distill.losses import TeacherSide, total_loss
from stages.distill.payloads import Payloads
from stages.distill.pictures import DECODES_OF_A_PICTURE, OF_THE_MACHINE, not_decodable
from stages.distill.rows import Rows, rows_by_part
from stages.images.decode import TOO_MANY_PIXELS
from stages.images.pool import DecodePool
from stages.images.prepare import CropPreparation, Prepared
from stages.images.preprocess import Preprocess, normalise
from stages.students.encoder import StudentEncoder

MOST_MEASURED = 2_048
"""Held-out images that are looked at each time: enough for a share to be known within 2 points."""
_MOST_SENTENCES = 1_000
_ENCODED_AT_ONCE = 256
_DRAW = 3


def held_out_rows(cache: Cache, rows: Rows, share: float) -> Rows:
    """Returns the rows among `rows` that are held out, about `share` of them; a function of their pictures alone.

    Two rows with the same picture lie on the same side, and a cache that grows keeps the side of every old row.

    Args:
        cache: open.
        rows: ok image rows, ascending.
        share: above 0 and below 1.

    Raises:
        UsageError: one of the two sides would be empty.
    """
    sides = [
        some[np.frombuffer(digests, "<u8").reshape(-1, 2)[:, 1] < np.uint64(int(share * 2**64))]
        for some, digests in _digests(cache, rows)
    ]
    held_out = np.concatenate([np.zeros(0, np.int64), *sides])
    if not 0 < len(held_out) < len(rows):
        raise UsageError(
            f"--hold-out {share:g} holds out {len(held_out):,} of {len(rows):,} images: name a share that leaves some "
            "on both sides, or a selection"
        )
    return held_out


def without_held_out(cache: Cache, rows: Rows, held_out: Rows) -> Rows:
    """Returns the rows of `rows` that may be trained on: neither held out nor of the same picture as one that is.

    Raises:
        UsageError: nothing is left.
    """
    pictures = _ascending(b"".join(digests for _, digests in _digests(cache, held_out)))
    left = np.concatenate(
        [np.zeros(0, np.int64)] + [some[~_are_among(pictures, digests)] for some, digests in _digests(cache, rows)]
    )
    if not len(left):
        raise UsageError(
            f"--hold-out leaves none of {len(rows):,} images to train on: hold out fewer, or train on others"
        )
    return left


@dataclass(frozen=True)
class HeldOut:
    """Held-out images with what the teacher says of them; the same for all students of a command.

    Attributes:
        cache: open.
        images: the teacher's image array of view 0.
        texts: the teacher's text array.
        rows: all held-out rows, ascending.
        text_rows: eligible sentences, ascending.
        payloads: where the bytes of pictures come from.
        num_workers: processes that decode.
    """

    cache: Cache
    images: CachedArray
    texts: CachedArray
    rows: Rows
    text_rows: Rows
    payloads: Payloads
    num_workers: int
    _pixels: dict[Preprocess, tuple[Rows, NDArray[np.uint8]]] = field(default_factory=dict, repr=False, compare=False)

    def measure(self, encoder: StudentEncoder, method: ResolvedMethod, device: torch.device) -> dict[str, float]:
        """Returns what the student makes of the held-out images, without a crop drawn at random.

        Args:
            encoder: of the student.
            method: its losses.
            device: where they are computed.

        Returns:
            `loss`, the weighted sum of the student's own losses over batches of at most its batch size against as many
            sentences as a step has; `cosine`, the mean between its feature and the teacher's; `agreement`, the share of
            images for which both choose the same among up to a thousand sentences.

        Raises:
            MismatchError: an original is not the picture that the teacher saw.
            RefusedError: a feature is not finite.
        """
        rows, pixels_NHWC = self._seen(encoder.preprocess)
        made = [
            encoder.encode_images(normalise(pixels_NHWC[first : first + _ENCODED_AT_ONCE], encoder.preprocess))
            for first in range(0, len(rows), _ENCODED_AT_ONCE)
        ]
        student_ND = usable_unit_rows(np.concatenate(made), "the held-out images of the student")
        teacher_ND = self.images.features.gather_unit(rows)
        text_TD = self._sentences(method.text_batch_size)
        losses = []
        for some in np.array_split(np.arange(len(rows)), -(-len(rows) // method.batch_size)):
            sides = (torch.from_numpy(side).to(device) for side in (student_ND[some], teacher_ND[some], text_TD))
            image_BD, teacher_BD, sentences_TD = sides
            total, _ = total_loss(
                image_BD,
                TeacherSide(teacher_BD, sentences_TD),
                weights=method.weights,
                temperatures=method.temperatures,
                logit_scale=method.logit_scale,
            )
            losses.append(total.item() * len(some))
        asked_TD = self._sentences(_MOST_SENTENCES)
        same = (student_ND @ asked_TD.T).argmax(axis=1) == (teacher_ND @ asked_TD.T).argmax(axis=1)
        return {
            "loss": sum(losses) / len(rows),
            "cosine": float((student_ND * teacher_ND).sum(axis=1).mean()),
            "agreement": float(same.mean()),
        }

    @property
    def num_measured(self) -> int:
        """Returns how many of the held-out images are looked at each time."""
        return min(len(self.rows), MOST_MEASURED)

    def _sentences(self, at_most: int) -> NDArray[np.float32]:
        return self.texts.features.gather_unit(_drawn(self.text_rows, at_most))

    def _seen(self, preprocess: Preprocess) -> tuple[Rows, NDArray[np.uint8]]:
        """Returns the rows that are measured, and their pixels NHWC; decoded once."""
        if preprocess not in self._pixels:
            rows = _drawn(self.rows, MOST_MEASURED)
            locations = self.cache.locations(rows)

            prepared = self._prepared(rows, locations, CropPreparation(preprocess))
            # A picture may be too long for the student's resize although the teacher's took it.
            usable = [place for place, picture in enumerate(prepared) if picture.pixels is not None]
            if not usable:
                raise UsageError(
                    f"none of {len(rows):,} held-out images can be prepared for the student ({prepared[0].status}: "
                    f"{prepared[0].reason}): hold out others"
                )
            pixels = [picture.pixels for picture in prepared if picture.pixels is not None]
            self._pixels[preprocess] = rows[usable], np.stack(pixels)
        return self._pixels[preprocess]

    def _prepared(self, rows: Rows, locations: Sequence[ImageLocation], preparation: CropPreparation) -> list[Prepared]:
        """Returns every picture prepared, or too long to be; a late decode process decodes again."""
        found: dict[int, Prepared] = {}
        with DecodePool(self.num_workers, preparation) as pool:
            for _ in range(DECODES_OF_A_PICTURE):
                left = [place for place in range(len(rows)) if place not in found]
                requests = ((self.payloads.payload(int(rows[place]), locations[place]), None) for place in left)
                for place, picture in zip(left, pool.map(requests), strict=True):
                    if picture.pixels is None and picture.status in OF_THE_MACHINE:
                        continue
                    if picture.pixels is None and picture.status != TOO_MANY_PIXELS:
                        raise not_decodable(locations[place], picture.status, picture.reason)
                    found[place] = picture
        late = [place for place in range(len(rows)) if place not in found]
        if late:
            raise EnvironmentProblem(
                f"{locations[late[0]].key!r} in {locations[late[0]].uri} is held out, and {len(late):,} such images "
                f"could not be decoded in {DECODES_OF_A_PICTURE} trials: this machine lacks time or memory for its "
                "decode processes; use fewer --decode-workers or free it, and run again"
            )
        return [found[place] for place in range(len(rows))]


def _drawn(rows: Rows, at_most: int) -> Rows:
    """Returns at most so many of `rows`, ascending, always the same ones."""
    if len(rows) <= at_most:
        return rows
    return np.sort(np.random.default_rng(_DRAW).choice(rows, at_most, replace=False))


def _digests(cache: Cache, rows: Rows) -> Iterator[tuple[Rows, bytes]]:
    """Yields the rows of every part, and their digests behind each other, 16 bytes each."""
    for part, some in rows_by_part(rows, cache.part_rows):
        table = cache.read_samples("image", part, ["row", "digest"])
        places = some - table.column("row")[0].as_py()
        yield some, b"".join(table.column("digest").take(places).to_pylist())


def _ascending(digests: bytes) -> NDArray[np.uint64]:
    """Returns digests behind each other as two numbers each, shape (2, number of digests), ascending."""
    first, second = np.frombuffer(digests, "<u8").reshape(-1, 2).T
    order = np.lexsort((second, first))
    return np.stack([first[order], second[order]])


def _are_among(ascending_2N: NDArray[np.uint64], digests: bytes) -> NDArray[np.bool_]:
    """Returns which of `digests` are among those that `_ascending` returned."""
    first, second = np.frombuffer(digests, "<u8").reshape(-1, 2).T
    is_among = np.zeros(len(first), bool)
    places = np.searchsorted(ascending_2N[0], first)
    left = np.arange(len(first))
    while True:
        left = left[places[left] < ascending_2N.shape[1]]
        left = left[ascending_2N[0, places[left]] == first[left]]
        if not len(left):
            return is_among
        is_same = ascending_2N[1, places[left]] == second[left]
        is_among[left[is_same]] = True
        # Several digests may begin alike.
        left = left[~is_same]
        places[left] += 1
