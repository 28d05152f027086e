"""The teachers whose arrays are unfinished in a cache, and the job that goes on with one of them."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cache_schema.progress import Progress
from pipeline.output import print_note
from stages.extract.config import ExtractConfig
from stages.imported.config import ImportConfig

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cache_schema.cache import Cache
    from cache_schema.recipe import Recipe
    from stages.parts.job import PartsJob


def unfinished_teachers(cache: "Cache") -> "list[Recipe]":
    """Returns a recipe of every teacher, and precision, with a pending part; of any when only pixels are pending."""
    from cache_schema.stored_pixels import stored_pixels

    found: dict[tuple[str, str], Recipe] = {}
    for modality in cache.modalities:
        for array in (cache.array(modality, name) for name in cache.arrays(modality)):
            if array.pending():
                found[array.recipe.specification, array.recipe.precision] = array.recipe
    stored = stored_pixels(cache)
    if not found and stored is not None and stored.pending():
        return [cache.array("image", cache.arrays("image")[0]).recipe]
    return list(found.values())


def job_of(config: ExtractConfig, recipe: "Recipe", progress: Progress) -> "AbstractContextManager[PartsJob[Any]]":
    """Returns the job that does what is pending of the teacher of `recipe`.

    It is that of an extract with the settings of `config`, or of an import from the files that the cache remembers.
    """
    if recipe.is_imported:
        from stages.imported.job import open_import

        return open_import(ImportConfig(cache=config.cache, teacher_name=recipe.teacher["name"]), progress=progress)
    from stages.extract.chosen import Surroundings
    from stages.extract.job import open_job

    config = replace(config, teacher=recipe.specification, precision=recipe.precision)
    return open_job(config, around=Surroundings(notice=print_note), progress=progress)
