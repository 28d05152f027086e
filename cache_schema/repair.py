"""Takes back the records of parts that are to be made again, so that the next extract makes these and no others."""

from collections import Counter
from collections.abc import Sequence

from cache_schema import atomic
from cache_schema.atomic import Fence
from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, unknown_name
from cache_schema.pixels import read_pixels_record
from cache_schema.plan import Plan
from cache_schema.publication import publish_metadata
from cache_schema.records import read_record
from cache_schema.samples import OK
from cache_schema.verify import PartOfArray, Problem
from cache_schema.withdrawn import read_note, withdraw_part


def withdraw(cache: Cache, problems: Sequence[Problem]) -> list[PartOfArray]:
    """Removes the record of every part that one of `problems` is about, and returns those parts.

    A note says what each part was, so that it becomes the same again or is refused. Also writes the Zarr metadata again
    where it is not what plan and recipe say.

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
    with cache.lock() as lock:
        withdrawn = _withdraw(cache, damaged, lock.fence)
        for array in (cache.array(modality, name) for modality in cache.modalities for name in cache.arrays(modality)):
            # Follows from plan and recipe; untouched where it is right.
            publish_metadata(cache, array.name, array.recipe, array.plan, lock.fence)
    return withdrawn


def withdraw_status(cache: Cache, status: str, fence: Fence) -> list[PartOfArray]:
    """Removes the record of every part that holds a row of `status`, of a locked cache, and returns those parts.

    A status of the sample is every array's, and the stored pixels'; one that an array alone gives is that array's. All
    rows of other statuses must come out as they were, or the part is refused. Where such a part is withdrawn already
    and not made again yet, nothing more is done.

    Raises:
        UsageError: no row has that status; the message lists those that rows have.
    """
    found: set[PartOfArray] = set()
    seen: Counter[str] = Counter()
    for modality in cache.modalities:
        for array in (cache.array(modality, name) for name in cache.arrays(modality)):
            for record in array.records():
                if not record.bad:
                    continue
                of_samples = cache.samples(modality, record.part).column("status").to_pylist()
                of_array = [exception.status for exception in record.exceptions]
                seen.update(word for word in (*of_samples, *of_array) if word != OK)
                if status in of_samples:
                    found |= {PartOfArray(modality, name, record.part) for name in cache.arrays(modality)}
                    found |= {PartOfArray(modality, None, record.part)} if modality == "image" else set()
                elif status in of_array:
                    found.add(PartOfArray(modality, array.name, record.part))
    if not found and not _is_tried_again(cache, status):
        raise unknown_name("status of a row in this cache", status, seen)
    return _withdraw(cache, found, fence, tried_again=(status,))


def withdraw_replanned(cache: Cache, plan: Plan, fence: Fence) -> None:
    """Removes the records that are not of their part any more, because a source of it was replaced in `plan`.

    Idempotent: after a crash between the plan and this, the next run does the rest.
    """
    layout, modality = cache.layout, plan.modality
    for part in map(plan.part, sorted(plan.replanned)):
        for path in (layout.record(modality, name, part.number) for name in layout.array_names(modality)):
            if path.exists():
                record = read_record(path)
                if not plan.is_of_part(part, record.num_rows, record.part_fingerprint):
                    fence.check()
                    atomic.remove_file(path)
        path = layout.pixels_record(part.number)
        if modality == "image" and path.exists():
            pixels = read_pixels_record(layout, part.number)
            if not plan.is_of_part(part, pixels.num_rows, pixels.part_fingerprint):
                fence.check()
                atomic.remove_file(path)


def _withdraw(
    cache: Cache, parts: set[PartOfArray], fence: Fence, *, tried_again: Sequence[str] = ()
) -> list[PartOfArray]:
    ordered = sorted(parts, key=lambda part: (part.modality, part.array or "", part.part))
    for part in ordered:
        if part.array is None:
            if (path := cache.layout.pixels_record(part.part)).exists():
                fence.check()
                atomic.remove_file(path)
            continue
        plan = cache.plan(part.modality)
        planned = plan.part_fingerprint(plan.part(part.part)) if part.part < plan.num_parts else ""
        withdraw_part(
            cache.layout, part.modality, part.array, part.part, planned=planned, tried_again=tried_again, fence=fence
        )
    return ordered


def _is_tried_again(cache: Cache, status: str) -> bool:
    """Returns whether a part that was withdrawn for `status` is still to be made again."""
    layout = cache.layout
    for modality in cache.modalities:
        for name in cache.arrays(modality):
            for path in layout.records(modality, name).glob("*.withdrawn"):
                part = int(path.stem)
                if not layout.record(modality, name, part).exists() and status in read_note(path).tried_again:
                    return True
    return False


def _has_damaged_samples(cache: Cache, part: PartOfArray) -> bool:
    try:
        cache.samples(part.modality, part.part)
    except DamagedError:
        return True
    return False
