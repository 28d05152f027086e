"""Takes back the records of damaged parts, so that the next extract makes these parts again and no others."""

from collections.abc import Sequence
from pathlib import Path

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError
from cache_schema.publication import publish_metadata
from cache_schema.verify import PartOfArray, Problem


def withdraw(cache: Cache, problems: Sequence[Problem]) -> list[PartOfArray]:
    """Removes the record of every part that one of `problems` is about, and returns those parts.

    Also writes the Zarr metadata again where it is not what plan and recipe say.

    A part whose sample table is damaged is withdrawn from every array, because all of them rest on that table.
    After an interruption the rest is withdrawn by calling it again with the problems that `verify_cache` then finds.

    Raises:
        LockedError: the cache is being written.
        DamagedError: a problem is about something that no part can restore, such as a plan or a recipe.
    """
    for problem in problems:
        if problem.part is None and problem.where.endswith(("plan.json", "recipe.json", "cache.json", "pixels.json")):
            raise DamagedError(f"{problem.where}: {problem.what}: extracting again cannot restore it; {problem.remedy}")
    damaged = {problem.part for problem in problems if problem.part is not None}
    shared = {part for part in damaged if part.array is not None and _has_damaged_samples(cache, part)}
    for part in shared:
        damaged |= {PartOfArray(part.modality, name, part.part) for name in cache.arrays(part.modality)}
    withdrawn = sorted(damaged, key=lambda part: (part.modality, part.array or "", part.part))
    with cache.lock() as lock:
        for part in withdrawn:
            atomic.remove_file(_record_of(cache, part))
        for array in (cache.array(modality, name) for modality in cache.modalities for name in cache.arrays(modality)):
            # Follows from plan and recipe; untouched where it is right.
            publish_metadata(cache, array.name, array.recipe, array.plan, lock.fence)
    return withdrawn


def _record_of(cache: Cache, part: PartOfArray) -> Path:
    if part.array is None:
        return cache.layout.pixels_record(part.part)
    return cache.layout.record(part.modality, part.array, part.part)


def _has_damaged_samples(cache: Cache, part: PartOfArray) -> bool:
    try:
        cache.samples(part.modality, part.part)
    except DamagedError:
        return True
    return False
