"""The worker of stage one: a loaded teacher that turns one planned part into a committed one.

The same worker runs in the serial executor and in every actor. It imports torch only inside a teacher.

V: views; B: rows of a batch; C, H, W: colours, height and width of the teacher's input; D: width of a feature.
"""

import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cache_schema.atomic import Fence
from cache_schema.commit import commit_part
from cache_schema.errors import MismatchError
from cache_schema.layout import Layout, Modality
from cache_schema.pixels import PixelRow, commit_pixels
from cache_schema.plan import SourceEntry
from cache_schema.samples import Sample
from stages.device import num_decoders
from stages.extract.admission import check_admission
from stages.extract.part import ArrayInProgress, ArrayOutput, ImageBatch, PixelsOutput, in_batches, rows_to_show
from stages.extract.probed import ProbedTeacher
from stages.extract.reader import PartReader, Row
from stages.extract.wanted import require_same_pixels
from stages.images.decode import Limits
from stages.images.preprocess import Preprocess
from stages.parts.pending import PartReport, PartTask
from stages.parts.worker import PartsWorker, StageClock
from stages.prefetch import prefetched
from stages.sources.watch import SeenRoots
from stages.teachers.arithmetic import Arithmetic, may_share_an_array
from stages.teachers.batches import padded_pixels, padded_texts
from stages.teachers.described import arithmetic_of, loaded_teacher


@dataclass(frozen=True)
class WorkerSettings:
    """Plain values that make every worker of one extract equal, wherever it runs.

    Attributes:
        specification: the specification of the teacher.
        device: cpu, cuda or cuda:N.
        precision: the precision of the forward pass.
        batch_size: rows of one forward pass; shorter batches are padded, so that features do not depend on neighbours.
        num_threads: CPU threads of the teacher; 0 means one per core.
        decode_workers: processes that decode images; 0 decodes inline, None leaves it to the worker's machine.
        fence: the fence of the cache's lock.
        versions: of the packages that decide what a feature is; every worker must have the same.
        outputs: of each modality the arrays with a pending part, view 0 first. Where there are none at all, no teacher
            is needed.
        probes: of each modality the probes' files of all arrays that the teacher makes, finished ones too.
        sources: the plan's sources of each modality.
        layout: of the cache.
        begun: the folders that the sources lie in, at the start of the run.
        pixels: the stored pixels, where some are pending.
        preprocess: the preprocessing of the teacher, for images.
        allow_mixed_numerics: parts may be computed on another kind of arithmetic than those already there; recorded.
        limits: what one input may cost.
    """

    specification: str
    device: str
    precision: str
    batch_size: int
    num_threads: int
    decode_workers: int | None
    fence: Fence
    versions: Mapping[str, str]
    outputs: Mapping[Modality, tuple[ArrayOutput, ...]]
    probes: Mapping[Modality, tuple[Path, ...]]
    sources: Mapping[Modality, tuple[SourceEntry, ...]]
    layout: Layout
    begun: SeenRoots | None = None
    pixels: PixelsOutput | None = None
    preprocess: Preprocess | None = None
    allow_mixed_numerics: bool = False
    limits: Limits = field(default_factory=Limits)


class PartWorker(PartsWorker):
    """Reads, encodes and commits one part after the other; `close` stops its decode processes.

    Args:
        settings: plain values, the same for all workers.
        progress: called with the rows of the part under way that are encoded so far.

    Raises, when it is made:
        EnvironmentProblem: this machine does not see the cache that the run writes.
        MismatchError: the teacher loaded here does not reproduce the probes of an array, or gives other features in
            another batch; its device computes otherwise than the one that made the parts already there; or its
            packages are not those of the run, or store other pixels.
        RefusedError: it gives different probes one feature.
    """

    def __init__(self, settings: WorkerSettings, *, progress: Callable[[int], None] | None = None) -> None:
        super().__init__(progress=progress)
        check_admission(settings.fence, settings.versions)
        self._settings = settings
        # Both stay so where pixels alone are pending.
        self._arithmetic = Arithmetic(settings.precision, "nothing")
        self._num_threads = 0
        if any(settings.outputs.values()):
            self._teacher = loaded_teacher(settings.specification, settings.device, settings.precision)
            self._num_threads = _set_threads(settings.num_threads)
            self._arithmetic = arithmetic_of(self._teacher, settings.device, settings.precision)
            for modality, outputs in settings.outputs.items():
                self._require_arithmetic(modality, outputs)
            self._probed = ProbedTeacher(
                self._teacher, self._arithmetic, batch_size=settings.batch_size, paths=settings.probes
            )
        if settings.pixels is not None:
            require_same_pixels(settings.pixels.recipe)
        self._clock = StageClock("read", "decode", "forward", "probe", "write")
        self._reader = PartReader(
            settings.sources,
            settings.preprocess,
            begun=settings.begun,
            layout=settings.layout,
            num_views=len(settings.outputs.get("image", ())),
            decode_workers=num_decoders(settings.decode_workers, settings.device),
            limits=settings.limits,
            clock=self._clock,
        )

    def _require_arithmetic(self, modality: Modality, outputs: Sequence[ArrayOutput]) -> None:
        for output in outputs:
            others = [kind for kind in output.numerics if not may_share_an_array(kind, self._arithmetic.numerics)]
            if others and not self._settings.allow_mixed_numerics:
                raise MismatchError(
                    f"{modality} parts in {output.target.layout.root} were computed on {' and '.join(others)}, this "
                    f"worker computes on {self._arithmetic.numerics}: use such a device and version, extract into a "
                    "new cache, or say --allow-mixed-numerics, which is recorded"
                )

    @property
    def kind(self) -> str:
        """The kind of arithmetic it computes with, which the workers of one run must share unless they need not."""
        return "any" if self._settings.allow_mixed_numerics else self._arithmetic.numerics

    def close(self) -> None:
        """Stops the decode processes."""
        self._reader.close()

    def __call__(self, task: PartTask) -> PartReport:
        """Reads, encodes and commits what is pending of the part of `task`. Doing it twice gives the same files.

        With `task.only` it encodes those rows and commits nothing.

        Raises:
            RefusedError: a source is damaged or no longer what was planned, or the lock was lost.
            DriftedError: the teacher no longer gives what it gave at the start; nothing of the array is committed.
            EnvironmentProblem: the cache cannot be written.
        """
        # A library may have taken them for itself while the last part was encoded.
        _set_threads(self._num_threads)
        if task.may_kill:
            self._reader.decode_apart()
        if task.fatal:
            task = self._still_pending(task)
        outputs = self._settings.outputs.get(task.modality, ())
        arrays = [
            ArrayInProgress(output, task.part.num_rows) for output in outputs if output.target.array in task.arrays
        ]
        done = PartReport(task.modality, task.part.number, task.part.num_rows)
        of_pixels = [array for array in arrays if array.output.from_pixels]
        rest = [array for array in arrays if not array.output.from_pixels]
        if rest or task.pixels:
            done += self._from_sources(task, rest)
        if of_pixels and (task.only is None or self._pixels_are_there(task)):
            done += self._from_pixels(task, of_pixels)
        return done

    def _from_sources(self, task: PartTask, arrays: Sequence[ArrayInProgress]) -> PartReport:
        """Reads the part from its sources, and commits its `arrays` and, after view 0, its pixels."""
        self._clock.restart()
        store = self._settings.pixels.recipe if task.pixels and self._settings.pixels is not None else None
        views = [array.output.rule for array in arrays]
        rows = rows_to_show(self._reader.originals(task.modality, task.part, views=views, store=store), task)
        jpegs: dict[int, bytes] = {}
        if task.modality == "image":
            samples, jpegs = self._encode_images(rows, arrays)
        else:
            samples = self._encode_texts(rows, *arrays, fatal=task.fatal)
        if task.only is not None:
            return PartReport(task.modality, task.part.number, 0)
        if arrays:
            self._probe(task)
        num_bad = sum(self._commit(task, samples, array) for array in arrays if array.output.rule is None)
        if task.pixels:
            self._commit_pixels(task, samples, jpegs)
        for array in arrays:
            if array.output.rule is not None:
                self._commit(task, samples, array)
        return PartReport(task.modality, task.part.number, task.part.num_rows, num_bad, self._clock.seconds)

    def _from_pixels(self, task: PartTask, arrays: Sequence[ArrayInProgress]) -> PartReport:
        """Reads the part from its stored pixels and sample table, and commits its `arrays`."""
        self._clock.restart()
        views = [array.output.rule for array in arrays]
        rows = self._reader.stored(task.part, views=views, layout=arrays[0].output.target.layout)
        samples, _ = self._encode_images(rows_to_show(rows, task), arrays)
        if task.only is None:
            self._probe(task)
        for array in arrays if task.only is None else ():
            self._commit(task, samples, array)
        return PartReport(task.modality, task.part.number, task.part.num_rows, 0, self._clock.seconds)

    def _encode_images(
        self, rows: Iterator[Row], arrays: Sequence[ArrayInProgress]
    ) -> tuple[list[Sample], dict[int, bytes]]:
        """Encodes the pictures of a part into `arrays`; returns all its samples, and the JPEGs to be stored."""
        samples: list[Sample] = []
        jpegs: dict[int, bytes] = {}
        crops = [array for array in arrays if array.output.rule is not None]
        made = self._image_batches(rows, num_views=len(arrays))
        # A device of its own gets its next batch read, decoded and normalised meanwhile. On the CPU the teacher has
        # all cores already, and a thread beside it would only hold it up; decode processes run ahead all the same.
        with closing(made if self._settings.device == "cpu" else prefetched(made)) as batches:
            for batch in batches:
                samples += batch.samples
                jpegs.update((at, jpeg) for at, jpeg in zip(batch.offsets, batch.jpegs, strict=True) if jpeg)
                # Bad rows alone, at the end of a part, have no pixels.
                for array, pixels_BCHW in zip(arrays, batch.pixels_of_view, strict=False):
                    with self._clock.measured("forward"):
                        array.store(batch.offsets, self._teacher.encode_images(pixels_BCHW))
                    if array.output.rule is None:
                        array.set_aside(batch.offsets, batch.too_long)
                for place, array in enumerate(crops):
                    array.store_checks(batch.offsets, batch.checks, place)
                self._show(len(samples))
        return samples, jpegs

    def _image_batches(self, rows: Iterator[Row], *, num_views: int) -> Generator[ImageBatch]:
        for batch in in_batches(rows, self._settings.batch_size):
            offsets = [row.offset for row in batch if row.picture is not None]
            pictures = [row.picture for row in batch if row.picture is not None]
            pixels = [picture.pixels for picture in pictures if picture.pixels is not None]
            views = range(num_views) if pixels else ()
            with self._clock.measured("decode"):
                of_view = [self._padded([of_row[view] for of_row in pixels]) for view in views]
            yield ImageBatch(
                [row.sample for row in batch],
                offsets,
                of_view,
                checks=[picture.checks for picture in pictures],
                jpegs=[picture.jpeg for picture in pictures],
                too_long=[picture.too_long for picture in pictures],
            )

    def _padded(self, pictures: list[np.ndarray]) -> np.ndarray:
        return padded_pixels(pictures, self._settings.batch_size, self._teacher.preprocess)

    def _encode_texts(self, rows: Iterator[Row], array: ArrayInProgress, *, fatal: Collection[int]) -> list[Sample]:
        """Encodes the sentences of a part into `array`, those at `fatal` as blanks; returns all its samples."""
        samples: list[Sample] = []
        for batch in in_batches(rows, self._settings.batch_size):
            samples += [row.sample for row in batch]
            offsets = [row.offset for row in batch if row.sample.text is not None]
            sentences = [(row.offset, row.sample.text) for row in batch if row.sample.text is not None]
            texts = ["" if offset in fatal else text for offset, text in sentences]
            if texts:
                with self._clock.measured("forward"):
                    array.note_truncation(offsets, texts, self._teacher)
                    padded = padded_texts(texts, self._settings.batch_size)
                    array.store(offsets, self._teacher.encode_texts(padded))
            self._show(len(samples))
        return samples

    def _probe(self, task: PartTask) -> None:
        """Asks the teacher for probes before anything that it made is committed."""
        with self._clock.measured("probe"):
            self._probed.require_same(task.modality, task.part.num_rows)

    def _commit(self, task: PartTask, samples: Sequence[Sample], array: ArrayInProgress) -> int:
        """Commits the part of one array; returns its bad rows."""
        array.hold_back(samples, task.fatal)
        with self._clock.measured("write"):
            record = commit_part(
                array.output.target,
                task.part.number,
                samples,
                array.features_BD,
                part_fingerprint=task.part_fingerprint,
                exceptions=array.exceptions,
                view_checks=array.view_checks,
                numerics=self._arithmetic.numerics,
                allow_mixed_numerics=self._settings.allow_mixed_numerics,
                seconds=self._clock.before_writing(),
                fence=self._settings.fence,
            )
        self.pulse += 1
        return len(record.bad)

    def _still_pending(self, task: PartTask) -> PartTask:
        """Returns `task` without what was committed before the worker died: it holds rows that came to no harm."""
        part = task.part.number
        layouts = {output.target.array: output.target.layout for output in self._settings.outputs[task.modality]}
        arrays = [name for name in task.arrays if not layouts[name].record(task.modality, name, part).exists()]
        return replace(task, arrays=tuple(arrays), pixels=task.pixels and not self._pixels_are_there(task))

    def _pixels_are_there(self, task: PartTask) -> bool:
        layout = self._settings.outputs["image"][0].target.layout
        return layout.pixels_record(task.part.number).exists()

    def _commit_pixels(self, task: PartTask, samples: Sequence[Sample], jpegs: Mapping[int, bytes]) -> None:
        pixels = self._settings.pixels
        assert pixels is not None, "pixels are pending"
        with self._clock.measured("write"):
            commit_pixels(
                pixels.layout,
                pixels.recipe,
                task.part.number,
                [PixelRow(sample.digest, jpegs.get(offset)) for offset, sample in enumerate(samples)],
                part_fingerprint=task.part_fingerprint,
                fence=self._settings.fence,
            )


def _set_threads(num_threads: int) -> int:
    """Sets the CPU threads of torch, unless 0 are asked for; returns how many there are, 0 where torch is not used."""
    # A teacher that computes with torch has imported it by now; no other one is made to.
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    if num_threads not in (0, torch.get_num_threads()):
        torch.set_num_threads(num_threads)
    return int(torch.get_num_threads())
