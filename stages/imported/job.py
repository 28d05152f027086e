"""The job of an import: from files of features and the samples they belong to, to the pending parts of a locked cache.

Nothing computes here: a part is committed by `stages.imported.worker`. Which files of features go with which parts is
kept in the recipe, beside the fingerprint, so that a run can go on after a crash and `repair` knows what to read.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from cache_schema import atomic
from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import MismatchError, UsageError
from cache_schema.json_file import Json
from cache_schema.layout import MODALITIES, Modality
from cache_schema.progress import Progress
from cache_schema.publication import publish_metadata, publish_plan, publish_recipe, target_of
from cache_schema.recipe import IMPORTED, Recipe, array_name, differences
from stages.device import num_cores
from stages.extract.wanted_sources import sources_of_tasks
from stages.feature_files import open_features
from stages.files.apart import require_outside_sources
from stages.imported.config import DEFAULT_LOGIT_SCALE, ImportConfig
from stages.imported.plan import JoinedPlan, joined_plan
from stages.imported.worker import ImportSettings, KnownFeatures, PartImporter
from stages.parts.job import PartsJob
from stages.parts.lock import is_on_disk, locked_cache
from stages.parts.pending import pending_tasks
from stages.search.index import build_missing_indexes
from stages.sources.watch import seen_roots

_UNKNOWN = ("weights", "architecture", "preprocessing", "tokenizer", "precision", "logit bias", "probes")
_SHOWN_DIFFERENCES = 6


@dataclass(kw_only=True)
class ImportJob(PartsJob[ImportSettings]):
    """The job of an import.

    Attributes:
        num_unused: modality -> features without a sample, None where this run had no reason to count them.
        assumed_logit_scale: nobody said what the logit scale is, so 100 was recorded, as assumed.
    """

    num_unused: Mapping[Modality, int | None]
    assumed_logit_scale: bool


@dataclass(frozen=True)
class _Asked:
    """One modality as an import asks a cache to have it.

    Attributes:
        joined: its plan, and the features that go with it.
        recipe: the recipe of the array.
        name: the name of the array.
    """

    joined: JoinedPlan
    recipe: Recipe
    name: str


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
        TooManyBadRows: more rows are bad already than the configuration allows.
        EnvironmentProblem: the cache cannot be written.
    """

    def look(cache: Cache) -> dict[Modality, _Asked]:
        return _ask(config, cache, progress)

    with locked_cache(config.cache, config.part_rows, look) as (cache, asked, fence):
        for of_modality in asked.values():
            _publish(cache, of_modality, fence)
        cache = cache.reopened()
        arrays = {modality: cache.array(modality, of_modality.name) for modality, of_modality in asked.items()}
        tasks = [task for array in arrays.values() for task in pending_tasks([array])]
        build_indexes = partial(build_missing_indexes, device=config.index_device, fence=fence)
        yield ImportJob(
            cache=cache,
            settings=ImportSettings(
                fence=fence,
                decode_workers=num_cores() if config.decode_workers is None else config.decode_workers,
                targets={modality: target_of(cache, array) for modality, array in arrays.items()},
                sources={modality: array.plan.sources for modality, array in arrays.items()},
                layout=cache.layout,
                begun=seen_roots(sources_of_tasks(tasks, {modality: array.plan for modality, array in arrays.items()})),
                features={modality: features_of_parts(array) for modality, array in arrays.items()},
            ),
            worker=PartImporter,
            tasks=tasks,
            arrays={modality: [array] for modality, array in arrays.items()},
            sources={modality: of_modality.joined.named for modality, of_modality in asked.items()},
            max_bad_fraction=config.max_bad_fraction,
            build_indexes=build_indexes if config.index else None,
            num_unused={modality: of_modality.joined.num_unused for modality, of_modality in asked.items()},
            assumed_logit_scale=any("logit scale" in one.recipe.teacher["unknown"] for one in asked.values()),
        )


def features_of_parts(array: CachedArray) -> dict[int, tuple[KnownFeatures, ...]]:
    """Returns number of a part -> the files of features for it and the parts after it, from an imported recipe."""
    found: dict[int, list[KnownFeatures]] = {}
    for path, entry in array.recipe.files.items():
        file = open_features(path, entry["format"], array.modality, entry["options"])
        for number in entry["first_parts"]:
            found.setdefault(number, []).append(KnownFeatures(file, entry["fingerprint"], entry["states"]))
    return {number: tuple(files) for number, files in sorted(found.items())}


def _ask(config: ImportConfig, cache: Cache, progress: Progress | None) -> dict[Modality, _Asked]:
    """Returns what `config` asks of every modality that has something to import. Writes nothing."""
    name = config.teacher_name or _only_name(config, cache)
    then = {modality: _array_of(cache, modality, name) for modality in MODALITIES}
    teacher, logit_scale = _teacher(config, name, then)
    asked: dict[Modality, _Asked] = {}
    for modality in MODALITIES:
        joined = joined_plan(config, cache, modality, then[modality], progress=progress)
        if joined is None:
            continue
        if not is_on_disk(cache):
            read = [*joined.files, *(source.uri for source in joined.plan.sources)]
            require_outside_sources(config.cache, "--cache", read)
        recipe = Recipe(
            modality=modality,
            teacher=teacher,
            preprocess={"unknown": True, "format": joined.format},
            dim=joined.dim,
            logit_scale=logit_scale,
            logit_bias=None,
            precision="unknown",
            specification=f"{IMPORTED}:{name}",
            files=joined.files,
            tools={tool: version(tool) for tool in ("numpy", "pyarrow", "pillow")},
        )
        asked[modality] = _Asked(joined, *_array_for(cache, config, recipe))
    if not asked:
        raise UsageError("nothing to import: give --image-features, --text-features or both")
    return asked


def _publish(cache: Cache, asked: _Asked, fence: atomic.Fence) -> None:
    """Makes durable what is asked of one modality: the plan, the array's metadata, its recipe."""
    modality, name, recipe = asked.recipe.modality, asked.name, asked.recipe
    publish_plan(cache, asked.joined.plan, fence)
    publish_metadata(cache, name, recipe, asked.joined.plan, fence)
    if name not in cache.arrays(modality) or cache.array(modality, name).recipe != recipe:
        publish_recipe(cache, name, recipe, None, fence)


def _only_name(config: ImportConfig, cache: Cache) -> str:
    arrays = [cache.array(modality, name) for modality in cache.modalities for name in cache.arrays(modality)]
    names = {array.recipe.teacher["name"] for array in arrays if array.recipe.is_imported}
    if len(names) != 1:
        found = f"has imported features of {', '.join(sorted(names))}" if names else "has no imported features yet"
        raise UsageError(
            f"cache {config.cache} {found}: say with --teacher-name whose features these are, such as openai-ViT-L-14"
        )
    return names.pop()


def _array_of(cache: Cache, modality: Modality, name: str) -> CachedArray | None:
    for array in (cache.array(modality, array) for array in cache.arrays(modality)):
        if array.recipe.is_imported and array.recipe.teacher["name"] == name:
            return array
    return None


def _teacher(
    config: ImportConfig, name: str, then: Mapping[Modality, CachedArray | None]
) -> tuple[dict[str, Json], float]:
    """Returns identity and logit scale: what was said, else what the cache says, else what is assumed."""
    known = next((array.recipe for array in then.values() if array is not None), None)
    if known is not None and config.logit_scale in (None, known.logit_scale):
        return dict(known.teacher), known.logit_scale
    unknown = [*_UNKNOWN, *(["logit scale"] if config.logit_scale is None else [])]
    return {"kind": IMPORTED, "name": name, "unknown": unknown}, config.logit_scale or DEFAULT_LOGIT_SCALE


def _array_for(cache: Cache, config: ImportConfig, recipe: Recipe) -> tuple[Recipe, str]:
    """Returns the recipe to keep and the name of its array, an existing one or the name for a new one."""
    present: dict[str, Recipe] = {}
    for name in cache.arrays(recipe.modality):
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
