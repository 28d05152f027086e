"""The arrays and pixels that a run asks for: view 0 of every modality, further views and stored pixels of images."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from PIL import Image, features

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError
from cache_schema.json_file import Json
from cache_schema.layout import Modality
from cache_schema.pixels import PixelsRecipe, read_pixels_recipe
from cache_schema.recipe import Recipe, array_name, differences
from stages.extract.clean_text import CLEAN_TEXT_RULES
from stages.extract.config import ExtractConfig
from stages.images.decode import DECODE_RULES
from stages.images.stored import PixelRule
from stages.images.views import ORIGINALS, ViewRule, pictures_of, recipe_of_view, recipe_of_view_0, rule_of
from stages.teachers.probes import probe_images

DECODING: Mapping[Modality, Mapping[str, Json]] = {"image": DECODE_RULES, "text": CLEAN_TEXT_RULES}
"""What recipes say of how bytes become what a teacher gets."""

_NUM_PROBES = 4


@dataclass(frozen=True)
class WantedArray:
    """An array that is there already, or is to be made."""

    modality: Modality
    name: str
    recipe: Recipe


def wanted_arrays(
    cache: Cache, config: ExtractConfig, recipes: Mapping[Modality, Recipe], pixels: PixelsRecipe | None
) -> list[WantedArray]:
    """Returns the arrays that `config` asks for, view 0 before its views.

    New views are cut from the stored pixels where the cache has some or gets some, unless it has views that were cut
    from the originals.

    Args:
        cache: as it is.
        config: what is asked.
        recipes: of view 0 of the teacher, for every modality.
        pixels: as `wanted_pixels` returned them.

    Raises:
        MismatchError: the cache was made by another teacher, or has views that were drawn otherwise.
    """
    wanted = []
    for modality, recipe in recipes.items():
        view_0 = WantedArray(modality, _name_of_view_0(cache, config, modality, recipe), recipe)
        wanted.append(view_0)
        if modality == "image":
            wanted += _further_views(cache, config, view_0, pixels)
    return wanted


def _name_of_view_0(cache: Cache, config: ExtractConfig, modality: Modality, recipe: Recipe) -> str:
    """Returns the name of the array with that recipe, an existing one or the name for a new one."""
    present = _recipes(cache, modality)
    for name, theirs in present.items():
        if theirs.fingerprint == recipe.fingerprint:
            return name
    if present and not config.add_teacher:
        theirs = next(iter(present.values()))
        raise MismatchError(
            f"cache {config.cache} was made by {theirs.specification} ({theirs.fingerprint[:6]}), this run asks for "
            f"{recipe.specification} ({recipe.fingerprint[:6]}) ({_shown_differences(recipe, theirs)}): use another "
            "--cache, drop --teacher, or put it beside the other with --add-teacher"
        )
    name = array_name(recipe.specification, recipe.view)
    return name if name not in present else f"{name[:70]}-{recipe.fingerprint[:6]}"


def _further_views(
    cache: Cache, config: ExtractConfig, view_0: WantedArray, pixels: PixelsRecipe | None
) -> list[WantedArray]:
    """Returns views 1 and more. What `config` leaves open is as in the views that the cache has of this teacher."""
    siblings = {
        name: recipe
        for name, recipe in _recipes(cache, "image").items()
        if recipe.view and recipe_of_view_0(recipe).fingerprint == view_0.recipe.fingerprint
    }
    rules = [rule for rule in map(rule_of, siblings.values()) if rule is not None]
    num_views = config.views or 1 + max((rule.view for rule in rules), default=0)
    seed = config.view_seed if config.view_seed is not None else rules[0].seed if rules else 0
    # All views of a teacher are cut from the same pictures, so that a student needs only these.
    pictures = ORIGINALS if pixels is None else dict(pixels.rule)
    if siblings:
        pictures = pictures_of(next(iter(siblings.values())))
    wanted = []
    for view in range(1, num_views):
        recipe = recipe_of_view(view_0.recipe, ViewRule(view, seed), pictures)
        wanted.append(WantedArray("image", _name_of_view(view_0.name, view), recipe))
    for name, theirs in siblings.items():
        drawn = next((array.recipe for array in wanted if array.name == name), None)
        if drawn is not None and drawn.fingerprint != theirs.fingerprint:
            raise MismatchError(
                f"image array {name} of cache {config.cache} was drawn otherwise than this run asks "
                f"({_shown_differences(drawn, theirs)}): drop --view-seed, or extract into a new cache"
            )
    return wanted


def _name_of_view(view_0: str, view: int) -> str:
    base, dot, rest = view_0.rpartition(".v0")
    return f"{base}.v{view}{rest}" if dot else f"{view_0[:70]}.v{view}"


def _recipes(cache: Cache, modality: Modality) -> dict[str, Recipe]:
    return {name: cache.array(modality, name).recipe for name in cache.arrays(modality)}


def _shown_differences(ours: Recipe, theirs: Recipe) -> str:
    return "; ".join(
        f"{where}: {mine!r} now, {other!r} then"
        for where, mine, other in differences(ours.identity, theirs.identity)[:6]
    )


def wanted_pixels(cache: Cache, config: ExtractConfig) -> PixelsRecipe | None:
    """Returns what the stored pixels of the cache are, or are to be; None when it has none and none are asked for.

    Raises:
        MismatchError: the cache has pixels of another size.
    """
    there = read_pixels_recipe(cache.layout)
    asked = config.store_pixels
    if there is None:
        return None if asked is None else _new_recipe(PixelRule(asked))
    rule = PixelRule.from_json(there.rule)
    if asked is not None and asked != rule.side:
        raise MismatchError(
            f"cache {config.cache} stores pixels with a shorter side of {rule.side}, this run asks for {asked}: "
            "drop --store-pixels, or extract into a new cache"
        )
    return there


def require_same_pixels(recipe: PixelsRecipe) -> None:
    """Raises `MismatchError` when the libraries here make other JPEGs of the probes than those that made `recipe`."""
    now = _probe(PixelRule.from_json(recipe.rule))
    if now != recipe.probe:
        raise MismatchError(
            f"the libraries here ({_shown(_tools())}) store pictures otherwise than those that the stored pixels of "
            f"this cache were begun with ({_shown(dict(recipe.tools))}; probe {now[:12]} now, {recipe.probe[:12]} "
            "then): install those, or extract into a new cache"
        )


def _new_recipe(rule: PixelRule) -> PixelsRecipe:
    return PixelsRecipe(rule.to_json(), DECODING["image"], _probe(rule), _tools())


def _probe(rule: PixelRule) -> str:
    state = hashlib.sha256()
    for pixels in probe_images()[:_NUM_PROBES]:
        state.update(rule.encode(Image.fromarray(pixels)))
    return state.hexdigest()


def _tools() -> dict[str, str]:
    return {"pillow": version("pillow"), "jpeg": str(features.version("jpg"))}


def _shown(tools: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(tools.items()))
