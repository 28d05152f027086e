"""Reads parts: raw samples from sources, and pictures ready for a teacher from originals or from stored pixels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from cache_schema.errors import MismatchError
from cache_schema.layout import Layout, Modality
from cache_schema.pixels import PixelsOfPart, PixelsRecipe, read_pixels_record
from cache_schema.plan import SourceEntry
from cache_schema.samples import OK, digest_of
from stages.extract.part import PartInProgress
from stages.images.decode import Limits
from stages.images.pool import DecodePool
from stages.images.prepare import Prepared, ViewsPreparation, Wanted
from stages.images.preprocess import Preprocess
from stages.images.stored import PixelRule
from stages.images.views import ViewRule
from stages.sources import RawSample, Source, open_source


class PartReader:
    """Open sources and decode processes, both started when first needed.

    Args:
        sources: the plan's sources of each modality.
        preprocess: of the teacher; None where no images are read.
        num_views: the most views of a picture that will be asked for.
        decode_workers: processes that decode; 0 decodes inline.
        limits: what one input may cost.
    """

    def __init__(
        self,
        sources: Mapping[Modality, tuple[SourceEntry, ...]],
        preprocess: Preprocess | None,
        *,
        num_views: int,
        decode_workers: int,
        limits: Limits,
    ) -> None:
        self._sources = sources
        self._preprocess = preprocess
        self._num_views = num_views
        self._decode_workers = decode_workers
        self._limits = limits
        self._open_sources: dict[tuple[Modality, int], Source] = {}

    @cached_property
    def _pool(self) -> DecodePool:
        assert self._preprocess is not None, "images are read"
        return DecodePool(self._decode_workers, ViewsPreparation(self._preprocess, self._num_views, self._limits))

    def close(self) -> None:
        """Stops the decode processes."""
        if "_pool" in self.__dict__:
            self._pool.close()

    def originals(
        self, work: PartInProgress, views: Sequence[ViewRule | None], *, store: PixelsRecipe | None
    ) -> Iterator[tuple[int, Prepared]]:
        """Reads the originals of a part, adds its samples to `work` and yields those that are pictures.

        Args:
            work: gets the samples, and the JPEGs if they are to be stored.
            views: that are wanted of every picture.
            store: how pictures are stored; None stores none.

        Yields:
            The offset of a row, and its views.
        """
        rule = None if store is None else PixelRule.from_json(store.rule)
        raws: list[RawSample] = []
        digests: list[bytes | None] = []

        def payloads() -> Iterator[tuple[bytes, Wanted]]:
            for raw in self.raw_samples(work):
                # The pool holds the bytes for as long as it needs them; a whole part of them would not fit in memory.
                digest = None if raw.payload is None else digest_of(raw.payload)
                digests.append(digest)
                raws.append(replace(raw, payload=None))
                yield raw.payload or b"", Wanted(digest or b"", tuple(views), rule)

        with work.measured("decode", minus="read"):
            prepared_samples = self._pool.map(payloads())
        for offset in range(work.task.part.num_rows):
            with work.measured("decode", minus="read"):
                prepared = next(prepared_samples, None)
            if prepared is None:
                raise work.source_shrank(offset)
            sample = work.add_image(raws[offset], digests[offset], prepared)
            if prepared.pixels is not None and sample.status == OK:
                if rule is not None:
                    work.jpegs[offset] = prepared.jpeg
                yield offset, replace(prepared, jpeg=b"")

    def stored(
        self, work: PartInProgress, views: Sequence[ViewRule | None], layout: Layout
    ) -> Iterator[tuple[int, Prepared]]:
        """Reads the stored pixels of a part whose samples `work` has, and yields the offset and views of every one."""
        number = work.task.part.number
        stored = PixelsOfPart(layout.pixels(number), read_pixels_record(layout, number))
        offsets = [offset for offset, sample in enumerate(work.samples) if sample.status == OK]

        def payloads() -> Iterator[tuple[bytes, Wanted]]:
            for sample, offset in ((work.samples[offset], offset) for offset in offsets):
                with work.measured("read"):
                    jpeg = stored.picture(offset, sample.digest)
                assert sample.digest is not None and sample.width and sample.height, "an ok image has them"
                yield jpeg, Wanted(sample.digest, tuple(views), original_size=(sample.width, sample.height))

        with work.measured("decode", minus="read"):
            prepared_samples = self._pool.map(payloads())
        for offset in offsets:
            with work.measured("decode", minus="read"):
                prepared = next(prepared_samples)
            if prepared.pixels is None:
                raise MismatchError(
                    f"the stored picture of {work.samples[offset].key!r} cannot be decoded here ({prepared.status}: "
                    f"{prepared.reason}): install the Pillow that stored it, or extract into a new cache"
                )
            yield offset, prepared

    def raw_samples(self, work: PartInProgress) -> Iterator[RawSample]:
        """Yields the part's raw samples in order, counting the time spent on reading."""
        for span in work.task.part.spans:
            samples = self._source(work.task.modality, span.source).read(
                span.first_sample, span.num_samples, span.offset_bytes
            )
            for _ in range(span.num_samples):
                with work.measured("read"):
                    raw = next(iter(samples), None)
                if raw is None:
                    return
                yield raw

    def _source(self, modality: Modality, number: int) -> Source:
        if (modality, number) not in self._open_sources:
            entry = self._sources[modality][number]
            source = open_source(entry.uri, entry.kind, modality, dict(entry.options), fingerprint=entry.fingerprint)
            self._open_sources[modality, number] = source
        return self._open_sources[modality, number]
