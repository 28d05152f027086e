"""The sources that a run asks for: the plans with what is new, and what of a plan is still to be read."""

from collections.abc import Mapping, Sequence

from cache_schema.cache import Cache
from cache_schema.errors import RefusedError, UsageError
from cache_schema.layout import MODALITIES, Modality
from cache_schema.plan import Plan, SourceEntry
from cache_schema.progress import Progress
from stages.extract.config import ExtractConfig
from stages.extract.grow_plan import grown_plan, looked_again
from stages.extract.source_rows import CommittedRows
from stages.files.apart import require_outside_sources
from stages.parts.job import NamedSources
from stages.parts.pending import PartTask
from stages.sources.feature_rows import require_pictures


def grown_plans(
    config: ExtractConfig, cache: Cache, progress: Progress | None
) -> dict[Modality, tuple[Plan, NamedSources]]:
    """Returns the non-empty plan of every modality, with what `config` adds, and what it names. Writes nothing.

    Where nothing is named, everything is.

    Raises:
        UsageError: there is nothing, or the cache would lie inside a folder that is read.
        RefusedError, MismatchError, EnvironmentProblem: as `grown_by`.
    """
    uris: dict[Modality, Sequence[str]] = {"image": config.images, "text": config.texts}
    is_any_named = any(uris.values())
    plans: dict[Modality, tuple[Plan, NamedSources]] = {}
    for modality in MODALITIES:
        before, committed = cache.plan(modality), CommittedRows(cache, modality)
        grown = grown_plan(before, uris[modality], committed=committed, accept_new=config.accept_new, progress=progress)
        plan, named = grown.plan, NamedSources(grown.named, grown.empty)
        if not is_any_named:
            if config.accept_new:
                plan = looked_again(plan, range(len(plan.sources)), committed, accept_new=True)
            named = NamedSources(frozenset(range(len(plan.sources))), ())
        if plan.num_parts:
            require_pictures(plan, config.cache)
            _require_no_import(cache, before, plan)
            new = {source.uri for source in plan.sources} - {source.uri for source in before.sources}
            require_outside_sources(config.cache, "--cache", sorted(new))
            plans[modality] = plan, named
    if not plans:
        raise UsageError("nothing to extract: give --images, --texts or both")
    return plans


def pending_sources(cache: Cache, plan: Plan, arrays: Sequence[str]) -> list[int]:
    """Returns the places of the sources, known to the cache, that pending parts of `arrays` are read from."""
    pending: set[int] = set()
    for name in arrays:
        there = name in cache.arrays(plan.modality)
        committed = cache.array(plan.modality, name).committed if there else frozenset()
        pending |= {part.number for part in plan.parts() if part.number not in committed}
    numbers = {span.source for part in plan.parts() if part.number in pending for span in part.spans}
    known = len(cache.plan(plan.modality).sources)
    return sorted(number for number in numbers if number < known)


def sources_of_tasks(tasks: Sequence[PartTask], plans: Mapping[Modality, Plan]) -> list[SourceEntry]:
    """Returns the sources that the parts of `tasks` are read from, but for those that were replaced."""
    numbers = {(task.modality, span.source) for task in tasks for span in task.part.spans}
    entries = [plans[modality].sources[number] for modality, number in sorted(numbers)]
    return [entry for entry in entries if entry.replaced_by is None]


def _require_no_import(cache: Cache, before: Plan, plan: Plan) -> None:
    """Raises `RefusedError` when a source was replaced below features that others computed: nobody can make them."""
    if [entry.replaced_by for entry in before.sources] == [e.replaced_by for e in plan.sources[: len(before.sources)]]:
        return
    imported = [name for name in cache.arrays(plan.modality) if cache.array(plan.modality, name).recipe.is_imported]
    if imported:
        raise RefusedError(
            f"array {imported[0]} of cache {cache.path} was imported, so its rows cannot be computed anew from "
            "a source that changed: restore the source, or import into a new cache"
        )
