"""Which pixels a run stores, and whether this machine still writes the same JPEGs as the one that began."""

import hashlib
from importlib.metadata import version

from PIL import Image, features

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError
from cache_schema.pixels import PixelsRecipe, read_pixels_recipe
from stages.decode import DECODE_RULES
from stages.extract_config import ExtractConfig
from stages.pixel_rule import PixelRule
from stages.probes import probe_images

_NUM_PROBES = 4


def wanted_pixels(cache: Cache, config: ExtractConfig) -> PixelsRecipe | None:
    """Returns what the stored pixels of the cache are, or are to be; None when it has none and none are asked for.

    Raises:
        MismatchError: the cache has pixels of another size.
    """
    there = read_pixels_recipe(cache.layout)
    asked = config.store_pixels
    if there is None:
        return None if asked is None else _new_recipe(PixelRule(asked))
    rule = rule_of_pixels(there)
    if asked is not None and asked != rule.side:
        raise MismatchError(
            f"cache {config.cache} stores pixels with a shorter side of {rule.side}, this run asks for {asked}: "
            "drop --store-pixels, or extract into a new cache"
        )
    return there


def rule_of_pixels(recipe: PixelsRecipe) -> PixelRule:
    """Returns the rule by which pictures are stored."""
    return PixelRule.from_json(recipe.rule)


def require_same_pixels(recipe: PixelsRecipe) -> None:
    """Raises `MismatchError` when the libraries here make other JPEGs of the probes than those that made `recipe`."""
    now = _probe(rule_of_pixels(recipe))
    if now != recipe.probe:
        raise MismatchError(
            f"the libraries here ({_shown(_tools())}) store pictures otherwise than those that the stored pixels of "
            f"this cache were begun with ({_shown(dict(recipe.tools))}; probe {now[:12]} now, {recipe.probe[:12]} "
            "then): install those, or extract into a new cache"
        )


def _new_recipe(rule: PixelRule) -> PixelsRecipe:
    decoding = {name: words for name, words in DECODE_RULES.items() if name != "text"}
    return PixelsRecipe(rule.to_json(), decoding, _probe(rule), _tools())


def _probe(rule: PixelRule) -> str:
    state = hashlib.sha256()
    for pixels in probe_images()[:_NUM_PROBES]:
        state.update(rule.encode(Image.fromarray(pixels)))
    return state.hexdigest()


def _tools() -> dict[str, str]:
    return {"pillow": version("pillow"), "jpeg": str(features.version("jpg"))}


def _shown(tools: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(tools.items()))
