"""The bytes of the pictures that a student trains on: the originals, or the small JPEGs that a cache may store."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from cache_schema.cache import Cache, ImageLocation
from cache_schema.errors import MismatchError, UsageError
from cache_schema.samples import digest_of
from cache_schema.stored_pixels import StoredPixels, stored_pixels
from stages.distill.config import DistillConfig
from stages.distill.replay import Replay
from stages.images.stored import PixelRule
from stages.images.views import ORIGINALS, pictures_of
from stages.sources import Source, open_source

_Place = tuple[str, str, tuple[tuple[str, str], ...]]


class Payloads(Protocol):
    """The bytes of pictures, by row; several threads may ask at once."""

    def payload(self, row: int, location: ImageLocation) -> bytes:
        """Returns the bytes of the picture of an ok image row."""
        ...


@dataclass(frozen=True)
class SmallPictures:
    """The stored pixels of a cache; no original is read."""

    pixels: StoredPixels

    def payload(self, row: int, location: ImageLocation) -> bytes:
        """Returns the stored JPEG; raises `DamagedError` when it is not the one made from that original."""
        return self.pixels.jpeg(row, location.digest)

    @cached_property
    def _rule(self) -> PixelRule:
        return PixelRule.from_json(self.pixels.recipe.rule)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Returns (width, height) of the stored picture of an original of that size."""
        return self._rule.stored_size(width, height)


class Originals:
    """Reads the payloads of image rows from their sources, each compared with the digest in the sample table.

    Safe with several threads: each that reads at the same time has a source of its own, which keeps what it read last.
    """

    def __init__(self) -> None:
        self._idle: dict[_Place, list[Source]] = {}

    def payload(self, row: int, location: ImageLocation) -> bytes:
        """Returns the bytes at `location`; raises `MismatchError` when they are others than the teacher saw."""
        place = (location.kind, location.uri, tuple(sorted(location.options.items())))
        idle = self._idle.setdefault(place, [])
        try:
            source = idle.pop()
        except IndexError:
            source = open_source(location.uri, location.kind, "image", dict(location.options))
        try:
            payload = source.read_one(location.key, location.offset_bytes, location.size_bytes)
        finally:
            idle.append(source)
        if digest_of(payload) != location.digest:
            raise MismatchError(
                f"{location.key!r} in {location.uri} has digest {digest_of(payload).hex()[:12]}, the teacher saw "
                f"{location.digest.hex()[:12]}: restore the original, or extract the changed source into a new cache"
            )
        return payload


def pixels_to_train_on(config: DistillConfig, cache: Cache, replay: Replay | None) -> StoredPixels | None:
    """Returns the stored pixels that training reads, None when it reads the originals.

    Raises:
        UsageError: stored pixels are asked for, and the cache has none.
        UnfinishedError: they are needed and not complete.
        MismatchError: the views were cut from other pictures than those asked for.
    """
    stored = stored_pixels(cache)
    seen = None if replay is None else pictures_of(replay.arrays[0].recipe)
    if seen is None:
        if config.pictures == "stored" and stored is None:
            raise UsageError(
                f"cache {cache.path} stores no pixels: run `pipeline extract --store-pixels 256`, or drop it"
            )
        if config.pictures == "stored" and stored is not None:
            stored.require_complete()
        use_stored = config.pictures != "originals" and stored is not None and not stored.pending()
        return stored if use_stored else None
    needed = "originals" if seen == ORIGINALS else "stored"
    if config.pictures not in ("auto", needed):
        raise MismatchError(
            f"--pictures {config.pictures} is asked for, the views of {cache.path} were cut from the pictures "
            f"{needed!r}: drop --pictures, or name the --image-array of view 0, for which the student draws its own "
            "crops"
        )
    if needed == "originals":
        return None
    if stored is None or dict(stored.recipe.rule) != seen:
        raise MismatchError(
            f"the views of {cache.path} were cut from stored pixels of the rule {seen}, the cache has "
            f"{None if stored is None else dict(stored.recipe.rule)}: restore pixels.json from a copy"
        )
    stored.require_complete()
    return stored
