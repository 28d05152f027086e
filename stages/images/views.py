"""Views: the crops of a picture that a teacher looks at, what a recipe says of them, and their checks.

A library that decodes or resizes otherwise than it did when the teacher looked gives another check.
"""

import hashlib
from dataclasses import dataclass, replace

from PIL import Image

from cache_schema.errors import RefusedError
from cache_schema.json_file import Json
from cache_schema.recipe import Recipe
from cache_schema.view_checks import VIEW_CHECK_BYTES
from stages.images.crops import Crop, crop_of
from stages.images.preprocess import Preprocess, crop_pixels

ORIGINALS = "originals"
_CROP = "crop"
_SMALL = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")


@dataclass(frozen=True)
class ViewRule:
    """The rule of view `view`, 1 or more: it gives every image one crop, which a student can see again.

    Attributes:
        view: the number of the view.
        seed: the seed of all views of an array's teacher.
        scale: least and greatest share of the picture's area.
        ratio: least and greatest aspect (width over height).
    """

    view: int
    seed: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def crop(self, digest: bytes, *, width: int, height: int) -> Crop:
        """Returns the crop of the image with that sample digest and upright size; see `crop_of`."""
        return crop_of(self.seed, self.view, digest, width=width, height=height, scale=self.scale, ratio=self.ratio)


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


def check_of(image: Image.Image, crop: Crop) -> bytes:
    """Returns the check of a crop of an upright RGB picture, 4 bytes.

    The box is cut from the picture, resized to 32 × 32 (bicubic) and mirrored if the crop is; the check is the
    beginning of the BLAKE2b of its RGB bytes, row by row.
    """
    return hashlib.blake2b(crop_pixels(image, crop, _SMALL).tobytes()).digest()[:VIEW_CHECK_BYTES]
