"""Stage one: from sources and a teacher to a list of pending parts, and from finished parts to indexes and a summary.

`open_job` makes everything durable that workers must agree on (plan, recipes, probes, array metadata) and holds the
cache's lock; whoever runs the parts (`stages.extract.worker`) needs only the job's settings, which are plain values.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from cache_schema import atomic
from cache_schema.cache import DEFAULT_PART_ROWS, Cache, CachedArray, create_cache
from cache_schema.errors import MismatchError, RefusedError, UsageError
from cache_schema.json_file import Json
from cache_schema.layout import MODALITIES, Layout, Modality
from cache_schema.pixels import publish_pixels_recipe
from cache_schema.plan import Plan
from cache_schema.progress import Progress
from cache_schema.publication import publish_metadata, publish_plan, publish_recipe, target_of
from cache_schema.recipe import Recipe
from cache_schema.records import parts_by_numerics
from cache_schema.stored_pixels import StoredPixels, stored_pixels
from stages.extract.admission import package_versions
from stages.extract.config import ExtractConfig
from stages.extract.disk import disk_estimate, most_picture_bytes, pending_work, require_free_disk
from stages.extract.grow_plan import grown_plan
from stages.extract.part import ArrayOutput, PartTask, PixelsOutput
from stages.extract.wanted import DECODING, WantedArray, wanted_arrays, wanted_pixels
from stages.extract.worker import PartWorker, WorkerSettings
from stages.images.preprocess import Preprocess
from stages.images.views import ORIGINALS, pictures_of, rule_of
from stages.parts.bad_rows import check_bad_rows
from stages.search.index import build_missing_indexes
from stages.sources.feature_rows import require_pictures
from stages.teachers.base import files_unchanged
from stages.teachers.described import load_and_describe

Described = tuple[dict[Modality, Recipe], dict[Modality, bytes]]
"""What a teacher makes of each modality: its recipe, and its probes as the bytes of probes.npz."""


@dataclass
class ExtractJob:
    """An extract in progress: the cache is locked, plan and recipes are on disk.

    Attributes:
        cache: open.
        settings: what a worker needs; plain values.
        tasks: the pending parts, images first.
        arrays: modality -> names of the arrays being made, view 0 first.
        num_planned: modality -> planned rows.
    """

    config: ExtractConfig
    cache: Cache
    settings: WorkerSettings
    tasks: list[PartTask]
    arrays: dict[Modality, list[str]]
    num_planned: dict[Modality, int]
    _bad_rows: dict[Modality, int] = field(default_factory=dict)

    @property
    def make_worker(self) -> "partial[PartWorker]":
        """Returns the picklable factory that an executor calls once per worker."""
        return partial(PartWorker, self.settings)

    @property
    def num_pending_rows(self) -> int:
        return sum(task.part.num_rows for task in self.tasks)

    def count_bad(self, modality: Modality, num_bad: int) -> None:
        """Counts bad rows of a part just committed.

        Raises:
            TooManyBadRows: more of the modality's planned rows are bad than the configuration allows.
        """
        total = self._bad_rows[modality] = self._bad_rows.get(modality, 0) + num_bad
        config = self.config
        check_bad_rows(config.cache, modality, total, self.num_planned[modality], config.max_bad_fraction)

    def finish(self, *, progress: Progress | None = None) -> list[CachedArray]:
        """Builds the missing indexes of finished arrays of view 0 and returns all arrays; `cache` is opened anew."""
        cache = self.cache = self.cache.reopened()
        arrays = [cache.array(modality, name) for modality, names in self.arrays.items() for name in names]
        if self.config.index:
            device, fence = self.config.index_device, self.settings.fence
            build_missing_indexes(arrays, device=device, fence=fence, progress=progress)
        return arrays


@contextmanager
def open_job(
    config: ExtractConfig, *, describe_on: str | None = None, progress: Progress | None = None
) -> Iterator[ExtractJob]:
    """Yields the job of `config` with its cache locked and everything planned; unlocks at the end.

    Running the same configuration again plans nothing new and yields only the parts that are still pending. With
    nothing pending and the teacher's files unchanged, the teacher is not loaded.

    Args:
        config: what is asked.
        describe_on: device on which this process loads the teacher to learn its recipe; None means the one it will
            compute on. A process that leaves the work to others may have no GPU.
        progress: called with (sources scanned, sources, unit).

    Raises:
        UsageError: nothing to extract from, or a source, teacher or option that cannot be.
        MismatchError: the cache was made with another teacher, part rows, or other versions of the sources.
        LockedError: another extract is running on this cache.
        EnvironmentProblem: the cache cannot be written, the disk has no room for it, or the device is absent.
    """
    existing = Cache.open(config.cache) if (config.cache / "cache.json").exists() else None
    before = existing or planned_cache(config)
    known = {modality: before.plan(modality) for modality in MODALITIES}
    specification = config.teacher or teacher_of(config, existing)
    # Before a new cache is made, so that a teacher that cannot be loaded leaves nothing behind.
    described = None if existing else _describe(specification, config, describe_on)
    plans = grown_plans(config, existing, progress)
    if described is not None:
        _require_room(planned_cache(config), config, described, plans)
    cache = existing or create_cache(config.cache, config.part_rows or DEFAULT_PART_ROWS)
    with cache.lock() as lock:
        # Before the lock was ours, another process may have planned more, or have made the same new cache.
        cache = cache.reopened()
        if cache.part_rows != before.part_rows or any(cache.plan(modality) != known[modality] for modality in known):
            plans = grown_plans(config, cache, progress)
        if existing is not None:
            described = _unchanged(cache, config, specification, plans) or _describe(specification, config, describe_on)
        assert described is not None
        recipes, probes = described
        pixels = wanted_pixels(cache, config) if "image" in plans else None
        wanted = _require_room(cache, config, described, plans)
        for plan in plans.values():
            publish_plan(cache, plan, lock.fence)
        for array in wanted:
            _publish_array(cache, array, probes.get(array.modality), plans[array.modality], lock.fence)
        if pixels is not None:
            publish_pixels_recipe(cache.layout, pixels, fence=lock.fence)
        opened = {
            modality: [cache.array(modality, array.name) for array in wanted if array.modality == modality]
            for modality in plans
        }
        tasks = [task for arrays in opened.values() for task in _tasks(arrays, stored_pixels(cache))]
        settings = WorkerSettings(
            specification=specification,
            device=config.device,
            precision=config.precision,
            batch_size=min(config.batch_size, cache.part_rows),
            num_threads=config.num_threads,
            decode_workers=config.decode_workers,
            fence=lock.fence,
            outputs={
                modality: tuple(_output_of(array) for array in arrays if array.pending())
                for modality, arrays in opened.items()
            },
            versions=package_versions(),
            sources={modality: plan.sources for modality, plan in plans.items()},
            pixels=PixelsOutput(cache.layout, pixels) if pixels and any(task.pixels for task in tasks) else None,
            preprocess=Preprocess.from_json(dict(recipes["image"].preprocess)) if "image" in plans else None,
            allow_mixed_numerics=config.allow_mixed_numerics,
        )
        job = ExtractJob(
            config,
            cache,
            settings,
            tasks,
            arrays={modality: [array.name for array in arrays] for modality, arrays in opened.items()},
            num_planned={modality: plan.num_rows for modality, plan in plans.items()},
        )
        for modality, (view_0, *_) in opened.items():
            job.count_bad(modality, view_0.num_bad)
        yield job


def planned_cache(config: ExtractConfig) -> Cache:
    """Returns the cache that `config` would make, of which nothing is on disk."""
    return Cache(Layout(config.cache.absolute()), config.part_rows or DEFAULT_PART_ROWS)


def _require_room(
    cache: Cache, config: ExtractConfig, described: Described, plans: dict[Modality, Plan]
) -> list[WantedArray]:
    """Returns the arrays that `config` asks for; raises `EnvironmentProblem` when the disk has no room for them."""
    wanted = wanted_arrays(cache, config, {modality: described[0][modality] for modality in plans})
    work = pending_work(cache, config, wanted, plans)
    each = most_picture_bytes(plans["image"], work.pixels_side) if work.pixels else None
    require_free_disk(config.cache, disk_estimate(work, picture_bytes=each))
    return wanted


def grown_plans(config: ExtractConfig, cache: Cache | None, progress: Progress | None) -> dict[Modality, Plan]:
    """Returns the non-empty plan of every modality, with what `config` adds. Writes nothing."""
    part_rows = cache.part_rows if cache is not None else config.part_rows or DEFAULT_PART_ROWS
    if config.part_rows not in (None, part_rows):
        raise MismatchError(
            f"cache {config.cache} has part rows {part_rows}, this run asks for {config.part_rows}: "
            "drop --part-rows or use another --cache"
        )
    uris: dict[Modality, Sequence[str]] = {"image": config.images, "text": config.texts}
    plans = {}
    for modality in MODALITIES:
        plan = cache.plan(modality) if cache is not None else Plan(modality, part_rows)
        plan = grown_plan(plan, uris[modality], progress=progress)
        if plan.num_parts:
            plans[modality] = plan
            require_pictures(plan, config.cache)
    if not plans:
        raise UsageError("nothing to extract: give --images, --texts or both")
    return plans


def teacher_of(config: ExtractConfig, cache: Cache | None) -> str:
    """Returns the specification of the only teacher of `cache`; raises `UsageError` where there is none or several."""
    if cache is None:
        raise UsageError(f"cache {config.cache} does not exist yet: name the --teacher that is to fill it")
    recipes = [cache.array(m, name).recipe for m in cache.modalities for name in cache.arrays(m)]
    # Where there are real teachers, features that others computed beside them are nobody's to extend.
    named = {r.specification for r in recipes if not r.is_imported} or {r.specification for r in recipes}
    if len(named) != 1:
        raise UsageError(f"cache {config.cache} has {len(named)} teachers ({', '.join(sorted(named))}): name --teacher")
    return named.pop()


def _describe(specification: str, config: ExtractConfig, device: str | None) -> Described:
    return load_and_describe(
        specification, device=device or config.device, precision=config.precision, decoding=DECODING
    )


def _unchanged(
    cache: Cache, config: ExtractConfig, specification: str, plans: dict[Modality, Plan]
) -> Described | None:
    """Returns the recipes in the cache when nothing is pending and the teacher's files are as they were, else None."""
    recipes: dict[Modality, Recipe] = {}
    for modality in plans:
        for recipe in (cache.array(modality, name).recipe for name in cache.arrays(modality)):
            same = recipe.specification == specification and recipe.precision == config.precision
            if same and recipe.view == 0 and recipe.files and files_unchanged(recipe.files):
                recipes[modality] = recipe
    if recipes.keys() != plans.keys():
        return None
    for array in wanted_arrays(cache, config, recipes):
        there = array.name in cache.arrays(array.modality)
        if not there or len(cache.array(array.modality, array.name).committed) != plans[array.modality].num_parts:
            return None
    return recipes, {}


def _publish_array(cache: Cache, array: WantedArray, probes: bytes | None, plan: Plan, fence: atomic.Fence) -> None:
    """Publishes metadata, probes and, last, the recipe that makes the array exist; all arrays get the plan's length."""
    publish_metadata(cache, array.name, array.recipe, plan, fence)
    path = cache.layout.recipe(plan.modality, array.name)
    if path.exists():
        return
    if probes is None:
        raise RefusedError(f"{path} vanished while extract ran: do not change a cache by hand while it is written")
    publish_recipe(cache, array.name, array.recipe, probes, fence)


def _output_of(array: CachedArray) -> ArrayOutput:
    return ArrayOutput(
        target=target_of(array.cache, array),
        rule=rule_of(array.recipe),
        from_pixels=pictures_of(array.recipe) != ORIGINALS,
        numerics=tuple(parts_by_numerics(array.records())),
    )


def _tasks(arrays: Sequence[CachedArray], pixels: StoredPixels | None) -> Iterator[PartTask]:
    """Yields every part of a modality that is pending in one of its `arrays`, or in its `pixels`, in order."""
    plan = arrays[0].plan
    for part in plan.parts():
        pending = tuple(array.name for array in arrays if part.number not in array.committed)
        without_pixels = plan.modality == "image" and pixels is not None and part.number not in pixels.committed
        if pending or without_pixels:
            yield PartTask(plan.modality, part, plan.part_fingerprint(part), pending, without_pixels)


def summary_of(arrays: Sequence[CachedArray]) -> dict[str, Json]:
    """Returns, per array, its rows, ok, bad and pending rows, width, fingerprint and logical digest, as JSON."""
    return {
        f"{array.modality}/{array.name}": {
            "modality": array.modality,
            "array": array.name,
            "view": array.recipe.view,
            "teacher": array.recipe.specification,
            "rows": array.num_rows,
            "ok": array.num_ok,
            "bad": array.num_bad,
            "pending": sum(part.num_rows for part in array.pending()),
            "dim": array.recipe.dim,
            "bytes": array.num_bytes,
            "fingerprint": array.recipe.fingerprint,
            "digest": array.digest(),
        }
        for array in arrays
    }
