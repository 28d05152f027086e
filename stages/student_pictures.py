"""Which views and which pictures a student trains on, from what its cache has and what was asked."""

from cache_schema.cache import Cache, CachedArray
from cache_schema.errors import MismatchError, UsageError
from cache_schema.stored_pixels import StoredPixels, stored_pixels
from stages.distill_config import DistillConfig
from stages.replay import Replay
from stages.view_recipe import ORIGINALS, pictures_of, recipe_of_view_0


def views_of(config: DistillConfig, cache: Cache) -> tuple[CachedArray, Replay | None]:
    """Returns the array of view 0, and the further views that are replayed; None when the student draws its own crops.

    Without a name all further views of the teacher are replayed in turn; a named one alone.

    Raises:
        UsageError: no such array, or several teachers and no name.
        UnfinishedError: a view is not complete; shows the progress.
        MismatchError: a view has no view 0 beside it.
    """
    named = cache.array("image", config.image_array)
    arrays = [cache.array("image", name) for name in cache.arrays("image")]
    view_0 = recipe_of_view_0(named.recipe).fingerprint
    of_teacher = [array for array in arrays if recipe_of_view_0(array.recipe).fingerprint == view_0]
    base = next((array for array in of_teacher if not array.recipe.view), None)
    if base is None:
        raise MismatchError(f"{named} has no view 0 of its teacher beside it: run `pipeline extract` to make it")
    if config.image_array is None:
        chosen = sorted((a for a in of_teacher if a.recipe.view), key=lambda array: array.recipe.view)
    else:
        chosen = [named] if named.recipe.view else []
    for array in (base, *chosen):
        array.require_complete()
    return base, Replay(tuple(chosen)) if chosen else None


def pixels_to_train_on(config: DistillConfig, cache: Cache, replay: Replay | None) -> StoredPixels | None:
    """Returns the stored pixels that training reads, None when it reads the originals.

    Raises:
        UsageError: stored pixels are asked for, and the cache has none.
        UnfinishedError: they are needed and not complete.
        MismatchError: the views were cut from other pictures than those asked for.
    """
    stored = stored_pixels(cache)
    seen = None if replay is None else pictures_of(replay.arrays[0].recipe)
    if seen is None:
        if config.pictures == "stored" and stored is None:
            raise UsageError(
                f"cache {cache.path} stores no pixels: run `pipeline extract --store-pixels 256`, or drop it"
            )
        if config.pictures == "stored" and stored is not None:
            stored.require_complete()
        use_stored = config.pictures != "originals" and stored is not None and not stored.pending()
        return stored if use_stored else None
    needed = "originals" if seen == ORIGINALS else "stored"
    if config.pictures not in ("auto", needed):
        raise MismatchError(
            f"--pictures {config.pictures} is asked for, the views of {cache.path} were cut from the pictures "
            f"{needed!r}: drop --pictures, or name the --image-array of view 0, for which the student draws its own "
            "crops"
        )
    if needed == "originals":
        return None
    if stored is None or dict(stored.recipe.rule) != seen:
        raise MismatchError(
            f"the views of {cache.path} were cut from stored pixels of the rule {seen}, the cache has "
            f"{None if stored is None else dict(stored.recipe.rule)}: restore pixels.json from a copy"
        )
    stored.require_complete()
    return stored
