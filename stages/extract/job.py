"""The job of an extract: from sources and a teacher to the pending parts of a locked cache.

`ask` compares what is asked with what is there, and writes nothing. `open_job` makes everything durable that workers
must agree on (plan, recipes, probes, array metadata); whoever runs the parts (`stages.extract.worker`) needs only the
job's settings, which are plain values.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from cache_schema import atomic
from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import RefusedError, UsageError
from cache_schema.layout import Modality
from cache_schema.pixels import PixelsRecipe, publish_pixels_recipe
from cache_schema.plan import Plan
from cache_schema.progress import Progress
from cache_schema.publication import publish_metadata, publish_plan, publish_recipe, target_of
from cache_schema.recipe import Recipe
from cache_schema.records import parts_by_numerics
from cache_schema.repair import withdraw_replanned, withdraw_status
from cache_schema.stored_pixels import StoredPixels
from stages.device import AUTO
from stages.extract.admission import package_versions
from stages.extract.chosen import (
    ALONE,
    NO_PLACE,
    Place,
    Surroundings,
    batch_size_for,
    kept_precision,
    place_of,
)
from stages.extract.config import ExtractConfig
from stages.extract.disk import PendingWork, disk_estimate, most_picture_bytes, pending_work, require_free_disk
from stages.extract.grow_plan import looked_again
from stages.extract.part import ArrayOutput, PixelsOutput
from stages.extract.probed import check_described
from stages.extract.source_rows import CommittedRows
from stages.extract.wanted import DECODING, WantedArray, wanted_arrays, wanted_pixels
from stages.extract.wanted_sources import grown_plans, pending_sources, sources_of_tasks
from stages.extract.worker import PartWorker, WorkerSettings
from stages.images.preprocess import Preprocess
from stages.images.views import ORIGINALS, pictures_of, rule_of
from stages.parts.job import NamedSources, PartsJob
from stages.parts.lock import is_on_disk, locked_cache
from stages.parts.pending import PartTask, pending_tasks
from stages.search.index import build_missing_indexes
from stages.sources.watch import seen_roots
from stages.teachers.base import files_unchanged
from stages.teachers.described import load_and_describe, loaded_teacher
from stages.teachers.precision import chosen_precision

ExtractJob = PartsJob[WorkerSettings]


@dataclass(frozen=True)
class Asked:
    """The plans, arrays and pixels that an extract asks a cache to have, and how much of them is pending.

    Attributes:
        specification: the specification of the teacher.
        plans: modality -> plan with what is new; none that is empty.
        sources: modality -> what of its plan was named.
        arrays: all that are wanted, view 0 before its views.
        probes: modality -> bytes of probes.npz; empty where the teacher need not be loaded.
        pixels: how pictures are stored; None stores none.
        work: what is pending of all this.
        load_seconds: that loading and describing the teacher took; 0 where it need not be.
        precision: of the teacher's forward pass.
        place: where the teacher computes; None where it need not be loaded.
    """

    specification: str
    plans: Mapping[Modality, Plan]
    sources: Mapping[Modality, NamedSources]
    arrays: Sequence[WantedArray]
    probes: Mapping[Modality, bytes]
    pixels: PixelsRecipe | None
    work: PendingWork
    load_seconds: float
    precision: str
    place: Place | None


@contextmanager
def open_job(
    config: ExtractConfig, *, around: Surroundings = ALONE, progress: Progress | None = None
) -> Iterator[ExtractJob]:
    """Yields the job of `config` with its cache locked and everything planned; unlocks at the end.

    Running the same configuration again plans nothing new and yields only the parts that are still pending. With
    nothing pending and the teacher's files unchanged, the teacher is not loaded.

    Args:
        config: what is asked.
        around: as `ask`.
        progress: called with (sources scanned, sources, unit).

    Raises:
        UsageError: nothing to extract from, or a source, teacher or option that cannot be.
        MismatchError: the cache was made with another teacher, part rows, or other versions of the sources.
        LockedError: another process is writing to this cache.
        TooManyBadRows: more rows are bad already than the configuration allows.
        EnvironmentProblem: the cache cannot be written, the disk has no room for it, or the device is absent.
    """

    def look(cache: Cache) -> Asked:
        asked = ask(config, cache, around=around, progress=progress)
        _require_room(config, asked)
        return asked

    with locked_cache(config.cache, config.part_rows, look) as (cache, asked, fence):
        _publish(cache, asked, fence)
        if config.retry_bad is not None:
            withdraw_status(cache, config.retry_bad, fence)
        cache = cache.reopened()
        arrays: dict[Modality, list[CachedArray]] = {
            modality: [cache.array(modality, array.name) for array in asked.arrays if array.modality == modality]
            for modality in asked.plans
        }
        pixels = None if asked.pixels is None else StoredPixels(cache, asked.pixels)
        tasks = [task for of_modality in arrays.values() for task in pending_tasks(of_modality, pixels)]
        build_indexes = partial(build_missing_indexes, device=config.index_device, fence=fence)
        yield ExtractJob(
            cache=cache,
            settings=_settings(config, cache, asked, arrays, tasks, fence, around),
            worker=PartWorker,
            tasks=tasks,
            arrays=arrays,
            max_bad_fraction=config.max_bad_fraction,
            build_indexes=build_indexes if config.index else None,
            sources=asked.sources,
        )


def ask(
    config: ExtractConfig, cache: Cache, *, around: Surroundings = ALONE, progress: Progress | None = None
) -> Asked:
    """Returns what `config` asks of `cache`, which need not be on disk. Writes nothing.

    The teacher is loaded, unless nothing is pending and its files are unchanged.

    Args:
        config: what is asked.
        cache: as it is.
        around: who will do the work, and who is told what was chosen. A process that leaves it to others loads the
            teacher on a GPU only where it has one.
        progress: called with (sources scanned, sources, unit).

    Raises:
        UsageError, MismatchError, EnvironmentProblem: as `open_job`.
    """
    specification = config.teacher or teacher_of(config, cache)
    if config.precision == AUTO:
        config = replace(config, precision=kept_precision(cache, specification=specification) or AUTO)
    # Where nothing is planned the teacher is needed in any case: one that cannot be loaded is found before the scan.
    described = None if cache.modalities else _describe(specification, config, cache, around)
    grown = grown_plans(config, cache, progress)
    plans = {modality: plan for modality, (plan, _) in grown.items()}
    pixels = wanted_pixels(cache, config) if "image" in plans else None
    arrays = _finished_arrays(cache, config, specification, plans, pixels)
    if arrays is None:
        described = described or _describe(specification, config, cache, around)
        arrays = wanted_arrays(cache, config, {modality: described.recipes[modality] for modality in plans}, pixels)
        check_described(cache, arrays, described.probes)
    for modality, plan in plans.items():
        names = [array.name for array in arrays if array.modality == modality]
        tries_again = config.retry_bad is not None
        numbers = range(len(cache.plan(modality).sources)) if tries_again else pending_sources(cache, plan, names)
        plans[modality] = looked_again(plan, numbers, CommittedRows(cache, modality), tries_again=tries_again)
    return Asked(
        specification,
        plans,
        {modality: named for modality, (_, named) in grown.items()},
        arrays,
        described.probes if described else {},
        pixels,
        pending_work(cache, config, arrays, plans, pixels),
        described.seconds if described else 0.0,
        described.precision if described else config.precision,
        described.place if described else None,
    )


def teacher_of(config: ExtractConfig, cache: Cache) -> str:
    """Returns the specification of the only teacher of `cache`; raises `UsageError` where there is none or several."""
    if not is_on_disk(cache):
        raise UsageError(f"cache {config.cache} does not exist yet: name the --teacher that is to fill it")
    recipes = [cache.array(m, name).recipe for m in cache.modalities for name in cache.arrays(m)]
    # Where there are real teachers, features that others computed beside them are nobody's to extend.
    named = {r.specification for r in recipes if not r.is_imported} or {r.specification for r in recipes}
    if len(named) != 1:
        raise UsageError(f"cache {config.cache} has {len(named)} teachers ({', '.join(sorted(named))}): name --teacher")
    return named.pop()


@dataclass(frozen=True)
class _Described:
    """A teacher's recipe of each modality, its probes as the bytes of probes.npz, the seconds that took, and how."""

    recipes: Mapping[Modality, Recipe]
    probes: Mapping[Modality, bytes]
    seconds: float
    precision: str
    place: Place


def _describe(specification: str, config: ExtractConfig, cache: Cache, around: Surroundings) -> _Described:
    start = time.perf_counter()
    place = place_of(specification, config.device, around)
    precision = config.precision
    if precision == AUTO:
        # A path may be spelt otherwise than when the cache was made: then the teacher tells who it is.
        identity = loaded_teacher(specification, place.here, "float32").identity
        precision = kept_precision(cache, identity=identity) or chosen_precision(
            specification, place.device, compared_on=place.here, say=around.notice
        )
    recipes, probes = load_and_describe(specification, device=place.here, precision=precision, decoding=DECODING)
    return _Described(recipes, probes, time.perf_counter() - start, precision, place)


def _finished_arrays(
    cache: Cache, config: ExtractConfig, specification: str, plans: Mapping[Modality, Plan], pixels: PixelsRecipe | None
) -> list[WantedArray] | None:
    """Returns the wanted arrays when all of them are finished and the teacher's files are as they were, else None."""
    recipes: dict[Modality, Recipe] = {}
    for modality in plans:
        for recipe in (cache.array(modality, name).recipe for name in cache.arrays(modality)):
            same = recipe.specification == specification and recipe.precision == config.precision
            if same and recipe.view == 0 and recipe.files and files_unchanged(recipe.files):
                recipes[modality] = recipe
    if recipes.keys() != plans.keys():
        return None
    arrays = wanted_arrays(cache, config, recipes, pixels)
    for array in arrays:
        there = array.name in cache.arrays(array.modality)
        if not there or len(cache.array(array.modality, array.name).committed) != plans[array.modality].num_parts:
            return None
    return arrays


def _require_room(config: ExtractConfig, asked: Asked) -> None:
    each = most_picture_bytes(asked.plans["image"], asked.work.pixels_side) if asked.work.pixels else None
    require_free_disk(config.cache, disk_estimate(asked.work, picture_bytes=each))


def _publish(cache: Cache, asked: Asked, fence: atomic.Fence) -> None:
    """Makes durable what is asked: the plans, the arrays, the way pictures are stored."""
    for plan in asked.plans.values():
        publish_plan(cache, plan, fence)
        withdraw_replanned(cache, plan, fence)
    for array in asked.arrays:
        _publish_array(cache, array, asked.probes.get(array.modality), asked.plans[array.modality], fence)
    if asked.pixels is not None:
        publish_pixels_recipe(cache.layout, asked.pixels, fence=fence)


def _publish_array(cache: Cache, array: WantedArray, probes: bytes | None, plan: Plan, fence: atomic.Fence) -> None:
    """Publishes metadata, probes and, last, the recipe that makes the array exist; all arrays get the plan's length."""
    publish_metadata(cache, array.name, array.recipe, plan, fence)
    path = cache.layout.recipe(plan.modality, array.name)
    if path.exists():
        return
    if probes is None:
        raise RefusedError(f"{path} vanished while extract ran: do not change a cache by hand while it is written")
    publish_recipe(cache, array.name, array.recipe, probes, fence)


def _settings(
    config: ExtractConfig,
    cache: Cache,
    asked: Asked,
    arrays: Mapping[Modality, Sequence[CachedArray]],
    tasks: Sequence[PartTask],
    fence: atomic.Fence,
    around: Surroundings,
) -> WorkerSettings:
    preprocess = next((array.recipe.preprocess for array in asked.arrays if array.modality == "image"), None)
    pending = {(task.modality, name) for task in tasks for name in task.arrays}
    stored = asked.pixels if any(task.pixels for task in tasks) else None
    outputs = {
        modality: tuple(_output_of(array) for array in of_modality if (modality, array.name) in pending)
        for modality, of_modality in arrays.items()
    }
    of_pixels = {output.target.array for output in outputs.get("image", ()) if output.from_pixels}
    of_originals = [task for task in tasks if task.pixels or not of_pixels.issuperset(task.arrays)]
    of_teacher = any(outputs.values())
    place = (asked.place or place_of(asked.specification, config.device, around)) if of_teacher else NO_PLACE
    batch_size = config.batch_size or batch_size_for(
        {modality: arrays[modality][0].name for modality in outputs if outputs[modality]},
        cache.layout,
        place,
        partial(loaded_teacher, asked.specification, place.here, asked.precision),
        most=cache.part_rows,
        around=around,
        fence=fence,
    )
    return WorkerSettings(
        specification=asked.specification,
        device=place.device,
        precision=asked.precision,
        batch_size=min(batch_size, cache.part_rows),
        num_threads=config.num_threads,
        decode_workers=config.decode_workers,
        fence=fence,
        outputs=outputs,
        probes={
            modality: tuple(cache.layout.probes(modality, array.name) for array in of_modality)
            for modality, of_modality in arrays.items()
        },
        versions=package_versions(),
        sources={modality: plan.sources for modality, plan in asked.plans.items()},
        layout=cache.layout,
        begun=seen_roots(sources_of_tasks(of_originals, asked.plans)),
        pixels=None if stored is None else PixelsOutput(cache.layout, stored),
        preprocess=None if preprocess is None else Preprocess.from_json(dict(preprocess)),
        allow_mixed_numerics=config.allow_mixed_numerics,
    )


def _output_of(array: CachedArray) -> ArrayOutput:
    return ArrayOutput(
        target=target_of(array.cache, array),
        rule=rule_of(array.recipe),
        from_pixels=pictures_of(array.recipe) != ORIGINALS,
        numerics=tuple(parts_by_numerics(array.records())),
    )
