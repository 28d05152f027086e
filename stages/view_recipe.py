"""What the recipe of a view says: that of the teacher's view 0, and how its crops are drawn and from which pictures."""

from dataclasses import replace

from cache_schema.errors import RefusedError
from cache_schema.json_file import Json
from cache_schema.recipe import Recipe
from stages.views import ViewRule

ORIGINALS = "originals"
_CROP = "crop"


def recipe_of_view(view_0: Recipe, rule: ViewRule, pictures: Json) -> Recipe:
    """Returns the recipe of the view of `rule`, cut from `pictures`: "originals", or the rule of stored pixels."""
    crop = {"seed": rule.seed, "scale": list(rule.scale), "ratio": list(rule.ratio), "pictures": pictures}
    return replace(view_0, view=rule.view, preprocess={**view_0.preprocess, _CROP: crop})


def recipe_of_view_0(recipe: Recipe) -> Recipe:
    """Returns the recipe of view 0 of the teacher that `recipe` is about. All views of one teacher share it."""
    preprocess = {name: value for name, value in recipe.preprocess.items() if name != _CROP}
    return replace(recipe, view=0, preprocess=preprocess)


def rule_of(recipe: Recipe) -> ViewRule | None:
    """Returns how the crops of a view are drawn; None for view 0, which has none."""
    if recipe.view == 0:
        return None
    crop = _crop_of(recipe)
    scale, ratio = crop["scale"], crop["ratio"]
    return ViewRule(recipe.view, crop["seed"], (scale[0], scale[1]), (ratio[0], ratio[1]))


def pictures_of(recipe: Recipe) -> Json:
    """Returns which pictures the crops were cut from: "originals", or the rule of stored pixels as JSON."""
    return ORIGINALS if recipe.view == 0 else _crop_of(recipe)["pictures"]


def _crop_of(recipe: Recipe) -> dict[str, Json]:
    crop = recipe.preprocess.get(_CROP)
    if not isinstance(crop, dict) or not {"seed", "scale", "ratio", "pictures"} <= crop.keys():
        raise RefusedError(
            f"the recipe of view {recipe.view} of {recipe.specification} does not say how its crops were drawn: "
            "name an --image-array of view 0, or extract its views into a new cache"
        )
    return crop
