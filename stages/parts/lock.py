"""The cache that a run writes: the one on disk or a new one, locked, and looked at under the lock."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cache_schema.atomic import Fence
from cache_schema.cache import Cache, create_cache
from cache_schema.errors import MismatchError
from cache_schema.layout import Layout
from cache_schema.shards import DEFAULT_PART_ROWS
from stages.files.apart import require_outside_caches

Found = TypeVar("Found")


def cache_at(path: Path, part_rows: int | None) -> Cache:
    """Returns the cache at `path`, or, where there is none, an empty one of which nothing is on disk.

    Args:
        path: folder of the cache.
        part_rows: that it must have; None takes those it has, or the default for a new one.

    Raises:
        UsageError: there is none, and the place is inside another cache.
        MismatchError: the cache has other part rows.
        DamagedError, RefusedError: as `Cache.open`.
    """
    layout = Layout(path.absolute())
    if not layout.cache_json.exists():
        require_outside_caches(path, "--cache")
        return Cache(layout, part_rows or DEFAULT_PART_ROWS)
    cache = Cache.open(path)
    if part_rows not in (None, cache.part_rows):
        raise MismatchError(
            f"cache {path} has part rows {cache.part_rows}, this run asks for {part_rows}: "
            "drop --part-rows or use another --cache"
        )
    return cache


def is_on_disk(cache: Cache) -> bool:
    """Returns whether `cache` has been made, or is only what one at its place would be."""
    return cache.layout.cache_json.exists()


@contextmanager
def locked_cache(
    path: Path, part_rows: int | None, look: Callable[[Cache], Found]
) -> Iterator[tuple[Cache, Found, Fence]]:
    """Yields the cache at `path`, made when missing, locked until the end, with what `look` found in it, and its fence.

    `look` writes nothing. A new cache is looked at before it is made, so that what cannot be done leaves nothing
    behind, and again only when another process has made the same one meanwhile. One that is there is looked at under
    the lock, when nobody else can change it.

    Raises:
        MismatchError: the cache has other part rows than `part_rows`.
        LockedError: another process is writing to it.
        EnvironmentProblem: it cannot be written.
        RefusedError: the folder holds something else.
    """
    before = cache_at(path, part_rows)
    is_new = not is_on_disk(before)
    if is_new:
        found = look(before)
        create_cache(path, before.part_rows)
    with before.lock() as lock:
        cache = cache_at(path, part_rows)
        if not is_new or cache.part_rows != before.part_rows or cache.modalities:
            found = look(cache)
        yield cache, found, lock.fence
