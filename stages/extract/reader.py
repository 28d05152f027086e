"""Reads parts row by row: samples from their sources, with their pictures from originals or from stored pixels."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from cache_schema.commit import committed_samples
from cache_schema.errors import DamagedError, MismatchError, RefusedError
from cache_schema.layout import Layout, Modality
from cache_schema.pixels import PixelsOfPart, PixelsRecipe, read_pixels_record
from cache_schema.plan import Part, SourceEntry, Span
from cache_schema.samples import OK, Sample, digest_of, read_table
from stages.extract.clean_text import CleanText, clean_text
from stages.images.decode import TOO_MANY_PIXELS, Limits
from stages.images.pool import DecodePool
from stages.images.prepare import AFTER_RESIZE, Prepared, ViewsPreparation, Wanted
from stages.images.preprocess import Preprocess
from stages.images.stored import PixelRule
from stages.images.views import ViewRule
from stages.parts.worker import StageClock
from stages.sources import RawSample, Source, open_source
from stages.sources.feature_rows import FeaturesSource
from stages.sources.watch import SeenRoots, SourceWatch


class Row(NamedTuple):
    """One planned row as it was read.

    Attributes:
        offset: in the part.
        sample: its entry in the sample table, with the text of an ok sentence.
        picture: of an ok image, the wanted views, their checks and, where it is to be stored, its JPEG. None for
            sentences, for bad images, and for images that are known by their features alone.
    """

    offset: int
    sample: Sample
    picture: Prepared | None = None


class PartReader:
    """Open sources and decode processes, both started when first needed.

    Args:
        sources: the plan's sources of each modality.
        begun: the folders that they lie in, at the start of the run.
        layout: of the cache, for the names of rows that are gone.
        preprocess: the preprocessing of whoever looks at pictures; None where no images are read.
        num_views: the most views of a picture that will be asked for.
        decode_workers: processes that decode; 0 decodes inline.
        limits: what one input may cost.
        clock: counts the seconds of `read` and `decode`.
    """

    def __init__(
        self,
        sources: Mapping[Modality, tuple[SourceEntry, ...]],
        preprocess: Preprocess | None,
        *,
        begun: SeenRoots | None,
        layout: Layout,
        num_views: int,
        decode_workers: int,
        limits: Limits,
        clock: StageClock,
    ) -> None:
        self._sources = sources
        self._preprocess = preprocess
        self._num_views = num_views
        self._decode_workers = decode_workers
        self._limits = limits
        self._clock = clock
        self._layout = layout
        self._watch = SourceWatch(sources, begun)
        self._open_sources: dict[tuple[Modality, int], Source] = {}

    @cached_property
    def _pool(self) -> DecodePool:
        assert self._preprocess is not None, "images are read"
        return DecodePool(self._decode_workers, ViewsPreparation(self._preprocess, self._num_views, self._limits))

    def close(self) -> None:
        """Stops the decode processes."""
        if "_pool" in self.__dict__:
            self._pool.close()

    def decode_apart(self) -> None:
        """Has pictures decoded in another process from now on: a decoder may be what kills this one."""
        if self._decode_workers == 0:
            self._decode_workers = 1
            self.__dict__.pop("_pool", None)

    def source(self, modality: Modality, number: int) -> Source:
        """Returns a source of the plan; all parts are read from the same one."""
        if (modality, number) not in self._open_sources:
            entry = self._sources[modality][number]
            self._open_sources[modality, number] = open_source(entry.uri, entry.kind, modality, dict(entry.options))
        return self._open_sources[modality, number]

    def originals(
        self,
        modality: Modality,
        part: Part,
        *,
        views: Sequence[ViewRule | None] = (),
        store: PixelsRecipe | None = None,
    ) -> Iterator[Row]:
        """Yields every planned row of a part, in order, from its sources.

        Args:
            modality: the modality of the part.
            part: as planned.
            views: that are wanted of every picture.
            store: how pictures are stored; None stores none.

        Raises:
            MismatchError: a source has fewer samples than were planned, or changed since then or while it is read.
            RefusedError: a source is damaged.
            EnvironmentProblem: a source, or the folder it lies in, vanished since the run began.
        """
        if modality == "text":
            return self._sentences(part)
        if all(self._is_features_alone(span.source) for span in part.spans):
            return (
                Row(offset, _sample(raw, part.first_row + offset, number))
                for offset, (number, raw) in enumerate(self._raw_samples("image", part))
            )
        return self._pictures(part, tuple(views), None if store is None else PixelRule.from_json(store.rule))

    def stored(self, part: Part, *, views: Sequence[ViewRule | None], layout: Layout) -> Iterator[Row]:
        """Yields every row of a committed part of images, in order, its picture from the stored pixels.

        Raises:
            UnfinishedError: the part, or its pixels, are not committed.
            DamagedError: its sample table or pixels are not those that were committed.
            MismatchError: a stored picture cannot be decoded here.
        """
        samples = committed_samples(layout, "image", part.number)
        pixels = PixelsOfPart(layout.pixels(part.number), read_pixels_record(layout, part.number))
        pixels.require_committed()

        def payloads() -> Iterator[tuple[bytes, Wanted]]:
            for offset, sample in enumerate(samples):
                if sample.status == OK:
                    with self._clock.measured("read"):
                        jpeg = pixels.picture(offset, sample.digest)
                    assert sample.digest is not None and sample.width and sample.height, "an ok image has them"
                    yield jpeg, Wanted(sample.digest, tuple(views), original_size=(sample.width, sample.height))

        pictures = self._prepared(payloads())
        for offset, sample in enumerate(samples):
            if sample.status != OK:
                yield Row(offset, sample)
                continue
            picture = next(pictures)
            if picture.pixels is None:
                raise MismatchError(
                    f"the stored picture of {sample.key!r} cannot be decoded here ({picture.status}: "
                    f"{picture.reason}): install the Pillow that stored it, or extract into a new cache"
                )
            yield Row(offset, sample, picture)

    def _sentences(self, part: Part) -> Iterator[Row]:
        for offset, (number, raw) in enumerate(self._raw_samples("text", part)):
            clean = None if raw.payload is None else clean_text(raw.payload, self._limits)
            yield Row(offset, _sample(raw, part.first_row + offset, number, clean))

    def _pictures(self, part: Part, views: tuple[ViewRule | None, ...], rule: PixelRule | None) -> Iterator[Row]:
        waiting: deque[Sample] = deque()

        def payloads() -> Iterator[tuple[bytes, Wanted]]:
            for offset, (number, raw) in enumerate(self._raw_samples("image", part)):
                # The pool holds the bytes for as long as it needs them; a whole part of them would not fit in memory.
                sample = _sample(raw, part.first_row + offset, number)
                waiting.append(sample)
                payload = b"" if self._is_features_alone(number) else raw.payload
                yield payload or b"", Wanted(sample.digest or b"", views, rule)

        judged = self._judged_by_size(part)
        for offset, picture in enumerate(self._prepared(payloads())):
            sample = waiting.popleft()
            if sample.status == OK and not self._is_features_alone(sample.source):
                sample = _seen(sample, picture)
                if sample.status == OK and offset in judged:
                    sample = replace(sample, status=TOO_MANY_PIXELS, reason=judged[offset])
                yield Row(offset, sample, picture if sample.status == OK else None)
            else:
                yield Row(offset, sample)

    def _judged_by_size(self, part: Part) -> dict[int, str]:
        """Returns offset -> reason of the pictures that a cache of before calls bad, because one teacher saw them so.

        There the verdict stands, whoever looks at them now. Today it is an exception of that teacher's array.
        """
        table = self._table_left(part, "image", ["status", "reason"])
        if table is None:
            return {}
        reasons = table.column("reason").to_pylist()
        bad = (at for at, status in enumerate(table.column("status").to_pylist()) if status == TOO_MANY_PIXELS)
        return {at: reasons[at] for at in bad if AFTER_RESIZE in reasons[at]}

    def _prepared(self, payloads: Iterable[tuple[bytes, Wanted]]) -> Iterator[Prepared]:
        """Returns what the decode processes make of `payloads`, in order; they start at once, and run ahead."""
        with self._clock.measured("decode", minus="read"):
            prepared = self._pool.map(payloads)
        return self._clock.timed("decode", prepared, minus="read")

    def _raw_samples(self, modality: Modality, part: Part) -> Iterator[tuple[int, RawSample]]:
        """Yields every sample of a part with the number of its source, in order.

        Sources are compared with the plan before the first and after the last of them.
        """
        numbers = {span.source for span in part.spans if not self._is_gone(modality, span.source)}
        sources = {number: self.source(modality, number) for number in numbers}
        for number, source in sources.items():
            self._watch.require_planned(modality, number, source)
        missing = ""
        num_read = 0
        try:
            for span in part.spans:
                for raw in self._clock.timed("read", self._raws(modality, part, span, num_read)):
                    judged = self._watch.judged(modality, span.source, raw)
                    missing = missing or (sources[span.source].uri if judged.status == "src-unreadable" else "")
                    yield span.source, judged
                    num_read += 1
        except RefusedError:
            # Whoever finds no file need not know that its folder is gone.
            for number in numbers:
                self._watch.require_roots(modality, number)
            raise
        for number, source in sources.items():
            self._watch.require_planned(modality, number, source)
        if missing:
            self._watch.require_folders(missing)

    def _raws(self, modality: Modality, part: Part, span: Span, offset: int) -> Iterator[RawSample]:
        """Yields the samples of a span, which begins at `offset` of its part."""
        if self._is_gone(modality, span.source):
            yield from self._gone(modality, part, span, offset)
            return
        source = self.source(modality, span.source)
        num_read = 0
        for raw in islice(source.read(span.first_sample, span.num_samples, span.offset_bytes), span.num_samples):
            yield raw
            num_read += 1
        if num_read < span.num_samples:
            raise MismatchError(
                f"part {part.number} of the {modality}s has {part.num_rows} planned rows, its sources gave "
                f"{offset + num_read}: {source.uri} changed after it was planned; restore it and run again"
            )

    def _gone(self, modality: Modality, part: Part, span: Span, offset: int) -> Iterator[RawSample]:
        """Yields the rows of a source that was replaced: bad ones, under the keys that they had if anybody knows."""
        table = self._table_left(part, modality, ["key"])
        keys = [f"#{span.first_sample + at + 1}" for at in range(span.num_samples)]
        if table is not None:
            keys = table.column("key").to_pylist()[offset : offset + span.num_samples]
        for key in keys:
            yield RawSample(key, None, 0, 0, "src-changed", "replaced")

    def _table_left(self, part: Part, modality: Modality, columns: Sequence[str]) -> "pa.Table | None":
        """Returns columns of the part's sample table, if there is one that can be read: a damaged one is made again."""
        path = self._layout.samples(modality, part.number)
        if not path.exists():
            return None
        with suppress(DamagedError):
            return read_table(path, modality, columns)
        return None

    def _is_gone(self, modality: Modality, number: int) -> bool:
        return self._sources[modality][number].replaced_by is not None

    def _is_features_alone(self, number: int) -> bool:
        return self._sources["image"][number].kind == FeaturesSource.kind


def _sample(raw: RawSample, row: int, source: int, clean: CleanText | None = None) -> Sample:
    """Returns a sample as its source gave it, a sentence with the verdict and the text of its cleaning."""
    digest = None if raw.payload is None else digest_of(raw.payload)
    # Both have a status and a reason.
    said = raw if clean is None else clean
    return Sample(
        row,
        raw.key,
        source,
        raw.offset_bytes,
        raw.size_bytes,
        digest,
        said.status,
        said.reason,
        text=None if clean is None else clean.text,
    )


def _seen(sample: Sample, picture: Prepared) -> Sample:
    """Returns `sample` with the status, reason and size that decoding found."""
    reason = " ".join(filter(None, (sample.reason, picture.reason)))
    return replace(
        sample, status=picture.status, reason=reason, width=picture.width or None, height=picture.height or None
    )
