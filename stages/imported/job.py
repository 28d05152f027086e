"""From files of features and the samples they belong to, to a list of pending parts; the counterpart of `extract`.

Nothing computes here: a part is committed by `import_worker`. Which files of features go with which parts is kept in
the recipe, beside the fingerprint, so that a run can go on after a crash and `repair` knows what to read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version

from cache_schema.cache import DEFAULT_PART_ROWS, Cache, CachedArray, create_cache
from cache_schema.errors import MismatchError, UsageError
from cache_schema.json_file import Json
from cache_schema.layout import MODALITIES, Modality
from cache_schema.plan import Plan
from cache_schema.progress import Progress
from cache_schema.publication import publish_metadata, publish_plan, publish_recipe, target_of
from cache_schema.recipe import IMPORTED, Recipe, array_name, differences
from stages.feature_files import open_features
from stages.imported.config import DEFAULT_LOGIT_SCALE, ImportConfig
from stages.imported.plan import ImportPlan, import_plan
from stages.imported.worker import ImportSettings, ImportTask, KnownFeatures, PartImporter
from stages.parts.bad_rows import check_bad_rows
from stages.search.index import build_missing_indexes

_UNKNOWN = ("weights", "architecture", "preprocessing", "tokenizer", "precision", "logit bias", "probes")
_SHOWN_DIFFERENCES = 6


@dataclass
class ImportJob:
    """An import in progress: the cache is locked, plan and recipes are on disk.

    Attributes:
        cache: open.
        settings: what an importer needs.
        tasks: the pending parts, images first.
        arrays: modality -> name of the array being made.
        num_planned: modality -> planned rows.
        num_unused: modality -> features without a sample, None where this run had no reason to count them.
        assumed_logit_scale: nobody said what the logit scale is, so 100 was recorded, as assumed.
    """

    config: ImportConfig
    cache: Cache
    settings: ImportSettings
    tasks: list[ImportTask]
    arrays: dict[Modality, str]
    num_planned: dict[Modality, int]
    num_unused: dict[Modality, int | None]
    assumed_logit_scale: bool
    _bad_rows: dict[Modality, int] = field(default_factory=dict)

    @property
    def make_worker(self) -> "partial[PartImporter]":
        """Returns the factory that an executor calls once."""
        return partial(PartImporter, self.settings)

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
        """Builds the missing indexes of finished arrays and returns the arrays, opened anew."""
        cache = self.cache = self.cache.reopened()
        arrays = [cache.array(modality, name) for modality, name in self.arrays.items()]
        if self.config.index:
            device, fence = self.config.index_device, self.settings.fence
            build_missing_indexes(arrays, device=device, fence=fence, progress=progress)
        return arrays


@contextmanager
def open_import(config: ImportConfig, *, progress: Progress | None = None) -> Iterator[ImportJob]:
    """Yields the job of `config` with its cache locked and everything planned; unlocks at the end.

    Running the same configuration again plans nothing new and yields only the parts that are still pending.

    Args:
        config: what is asked.
        progress: called with (files scanned, files, unit).

    Raises:
        UsageError: nothing to import, a file or option that cannot be, or features without samples.
        RefusedError: features or samples are damaged, repeat a key, or have no key in common.
        MismatchError: the cache was made otherwise, or a file has changed since it was planned.
        LockedError: another process is writing to this cache.
        EnvironmentProblem: the cache cannot be written.
    """
    existing = (config.cache / "cache.json").exists()
    if not existing:
        # Before a new cache is made, so that features that cannot be imported leave nothing behind.
        prepared = _prepare(config, None, progress)
        cache = create_cache(config.cache, config.part_rows or DEFAULT_PART_ROWS)
    else:
        cache = Cache.open(config.cache)
    with cache.lock() as lock:
        cache = cache.reopened()
        if existing or cache.modalities:  # another process may have made the same new cache
            prepared = _prepare(config, cache, progress)
        for modality, (planned, recipe, name) in prepared.items():
            publish_plan(cache, planned.plan, lock.fence)
            publish_metadata(cache, name, recipe, planned.plan, lock.fence)
            if name not in cache.arrays(modality) or cache.array(modality, name).recipe != recipe:
                publish_recipe(cache, name, recipe, None, lock.fence)
        cache = cache.reopened()
        arrays = {modality: cache.array(modality, name) for modality, (_, _, name) in prepared.items()}
        settings = ImportSettings(
            fence=lock.fence,
            decode_workers=config.decode_workers,
            targets={modality: target_of(cache, array) for modality, array in arrays.items()},
            sources={modality: array.plan.sources for modality, array in arrays.items()},
            features={modality: features_of_parts(array) for modality, array in arrays.items()},
        )
        tasks = [
            ImportTask(modality, part, array.plan.part_fingerprint(part))
            for modality, array in arrays.items()
            for part in array.pending()
        ]
        job = ImportJob(
            config,
            cache,
            settings,
            tasks,
            arrays={modality: array.name for modality, array in arrays.items()},
            num_planned={modality: array.plan.num_rows for modality, array in arrays.items()},
            num_unused={modality: planned.num_unused for modality, (planned, _, _) in prepared.items()},
            assumed_logit_scale=any("logit scale" in r.teacher["unknown"] for _, r, _ in prepared.values()),
        )
        for modality, array in arrays.items():
            job.count_bad(modality, array.num_bad)
        yield job


def features_of_parts(array: CachedArray) -> dict[int, tuple[KnownFeatures, ...]]:
    """Returns number of a part -> the files of features for it and the parts after it, from an imported recipe."""
    found: dict[int, list[KnownFeatures]] = {}
    for path, entry in array.recipe.files.items():
        file = open_features(path, entry["format"], array.modality, entry["options"])
        for number in entry["first_parts"]:
            found.setdefault(number, []).append(KnownFeatures(file, entry["fingerprint"], entry["states"]))
    return {number: tuple(files) for number, files in sorted(found.items())}


_Prepared = dict[Modality, tuple[ImportPlan, Recipe, str]]


def _prepare(config: ImportConfig, cache: Cache | None, progress: Progress | None) -> _Prepared:
    """Returns plan, recipe and array name of every modality that has something to import. Writes nothing."""
    part_rows = cache.part_rows if cache is not None else config.part_rows or DEFAULT_PART_ROWS
    if config.part_rows not in (None, part_rows):
        raise MismatchError(
            f"cache {config.cache} has part rows {part_rows}, this run asks for {config.part_rows}: "
            "drop --part-rows or use another --cache"
        )
    name = config.teacher_name or _only_name(config, cache)
    then = {modality: _recipe_of(cache, modality, name) for modality in MODALITIES}
    teacher, logit_scale = _teacher(config, name, then)
    prepared: _Prepared = {}
    for modality in MODALITIES:
        plan = cache.plan(modality) if cache is not None else Plan(modality, part_rows)
        planned = import_plan(config, plan, then[modality], progress=progress)
        if planned is None:
            continue
        recipe = Recipe(
            modality=modality,
            teacher=teacher,
            preprocess={"unknown": True, "format": planned.format},
            dim=planned.dim,
            logit_scale=logit_scale,
            logit_bias=None,
            precision="unknown",
            specification=f"{IMPORTED}:{name}",
            files=planned.files,
            tools={tool: version(tool) for tool in ("numpy", "pyarrow", "pillow")},
        )
        prepared[modality] = planned, *_array_for(cache, config, recipe)
    if not prepared:
        raise UsageError("nothing to import: give --image-features, --text-features or both")
    return prepared


def _only_name(config: ImportConfig, cache: Cache | None) -> str:
    names: set[str] = set()
    if cache is not None:
        arrays = [cache.array(modality, name) for modality in cache.modalities for name in cache.arrays(modality)]
        names = {array.recipe.teacher["name"] for array in arrays if array.recipe.is_imported}
    if len(names) != 1:
        found = f"has imported features of {', '.join(sorted(names))}" if names else "has no imported features yet"
        raise UsageError(
            f"cache {config.cache} {found}: say with --teacher-name whose features these are, such as openai-ViT-L-14"
        )
    return names.pop()


def _recipe_of(cache: Cache | None, modality: Modality, name: str) -> Recipe | None:
    for array in cache.arrays(modality) if cache is not None else ():
        assert cache is not None
        recipe = cache.array(modality, array).recipe
        if recipe.is_imported and recipe.teacher["name"] == name:
            return recipe
    return None


def _teacher(config: ImportConfig, name: str, then: Mapping[Modality, Recipe | None]) -> tuple[dict[str, Json], float]:
    """Returns identity and logit scale: what was said, else what the cache says, else what is assumed."""
    known = next((recipe for recipe in then.values() if recipe is not None), None)
    if known is not None and config.logit_scale in (None, known.logit_scale):
        return dict(known.teacher), known.logit_scale
    unknown = [*_UNKNOWN, *(["logit scale"] if config.logit_scale is None else [])]
    return {"kind": IMPORTED, "name": name, "unknown": unknown}, config.logit_scale or DEFAULT_LOGIT_SCALE


def _array_for(cache: Cache | None, config: ImportConfig, recipe: Recipe) -> tuple[Recipe, str]:
    """Returns the recipe to keep and the name of its array, an existing one or the name for a new one."""
    names: Sequence[str] = cache.arrays(recipe.modality) if cache is not None else ()
    present: dict[str, Recipe] = {}
    for name in names:
        assert cache is not None
        present[name] = theirs = cache.array(recipe.modality, name).recipe
        if theirs.fingerprint == recipe.fingerprint:
            return (recipe if theirs.files != recipe.files else theirs), name
    same = [theirs for theirs in present.values() if theirs.specification == recipe.specification]
    if same or (present and not config.add_teacher):
        theirs = (same or list(present.values()))[0]
        shown = "; ".join(
            f"{where}: {mine!r} now, {other!r} then"
            for where, mine, other in differences(recipe.identity, theirs.identity)[:_SHOWN_DIFFERENCES]
        )
        remedy = "use another --cache or --teacher-name" if same else "use another --cache, or --add-teacher"
        raise MismatchError(
            f"the {recipe.modality} features of cache {config.cache} were made by {theirs.specification} "
            f"({theirs.fingerprint[:6]}), these are {recipe.specification} ({recipe.fingerprint[:6]}) "
            f"({shown}): {remedy}"
        )
    name = array_name(recipe.specification, recipe.view)
    return recipe, name if name not in present else f"{name[:70]}-{recipe.fingerprint[:6]}"
