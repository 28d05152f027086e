"""A view says in its recipe how its crops are drawn, and its checks are those of pixels as Pillow cuts them."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cache_schema.errors import RefusedError
from cache_schema.json_file import Json
from cache_schema.recipe import Recipe
from stages.images.crops import Crop, crop_of
from stages.images.views import (
    ORIGINALS,
    ViewRule,
    check_of,
    pictures_of,
    recipe_of_view,
    recipe_of_view_0,
    rule_of,
)
from tests.corpora.pictures import noise
from tests.corpora.tiny_cache import recipe_for

VIEW_0 = recipe_for("image", 8, preprocess={"size": [8, 8]}, specification="some-teacher", files={"/a": {"n": 1}})
RULES = [ViewRule(1), ViewRule(7, -(2**63), (0.5, 0.9), (1.0, 1.0)), ViewRule(2, 2**63 - 1, (0.1, 1 / 3), (2 / 3, 1.5))]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pictures", [ORIGINALS, {"size": 256, "quality": 90}])
def test_a_recipe_gives_back_its_rule_and_its_pictures_also_from_json(rule: ViewRule, pictures: Json) -> None:
    recipe = recipe_of_view(VIEW_0, rule, pictures)
    for found in (recipe, Recipe.from_json(recipe.to_json(), "here")):
        assert rule_of(found) == rule and pictures_of(found) == pictures and found.view == rule.view
        assert recipe_of_view_0(found).fingerprint == VIEW_0.fingerprint
    assert recipe_of_view_0(recipe) == VIEW_0 and recipe.fingerprint != VIEW_0.fingerprint


def test_a_crop_is_written_beside_what_preprocessing_there_is() -> None:
    recipe = recipe_of_view(VIEW_0, ViewRule(3, 5), "originals")
    assert recipe.preprocess == {
        "size": [8, 8],
        "crop": {"seed": 5, "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3], "pictures": "originals"},
    }
    assert VIEW_0.preprocess == {"size": [8, 8]} and VIEW_0.view == 0


def test_every_part_of_a_rule_and_the_pictures_enter_the_fingerprint() -> None:
    rule = ViewRule(1, 2, (0.2, 0.9), (0.5, 2.0))
    others = [{"view": 2}, {"seed": 3}, {"scale": (0.3, 0.9)}, {"scale": (0.2, 1.0)}, {"ratio": (0.6, 2.0)}]
    recipes = [recipe_of_view(VIEW_0, replace(rule, **other), ORIGINALS) for other in [{}, *others]]
    recipes.append(recipe_of_view(VIEW_0, rule, {"size": 256}))
    assert len({recipe.fingerprint for recipe in recipes}) == len(recipes)


def test_a_view_of_a_view_is_a_view_of_the_pictures() -> None:
    first = recipe_of_view(VIEW_0, ViewRule(1, 2), {"size": 256})
    assert recipe_of_view(first, ViewRule(4, 5), ORIGINALS) == recipe_of_view(VIEW_0, ViewRule(4, 5), ORIGINALS)


def test_view_0_has_no_rule_and_is_of_the_originals_whatever_its_preprocessing_says() -> None:
    assert rule_of(VIEW_0) is None and pictures_of(VIEW_0) == "originals" and recipe_of_view_0(VIEW_0) == VIEW_0
    odd = replace(VIEW_0, preprocess={"crop": "center"})
    assert rule_of(odd) is None and pictures_of(odd) == "originals"


@pytest.mark.parametrize("lost", ["seed", "scale", "ratio", "pictures", "everything", "the object"])
def test_a_view_that_does_not_say_how_its_crops_were_drawn_is_refused_with_the_ways_out(lost: str) -> None:
    crop = dict(recipe_of_view(VIEW_0, ViewRule(3), ORIGINALS).preprocess["crop"])  # type: ignore[arg-type]
    crop.pop(lost, None)
    preprocess = {"everything": {}, "the object": {"crop": ["seed", "scale", "ratio", "pictures"]}}
    recipe = replace(VIEW_0, view=3, preprocess=preprocess.get(lost, {"crop": crop}))
    said = (
        r"the recipe of view 3 of some-teacher does not say how its crops were drawn: "
        r"name an --image-array of view 0, or extract its views into a new cache"
    )
    for ask in (rule_of, pictures_of):
        with pytest.raises(RefusedError, match=said):
            ask(recipe)


@pytest.mark.parametrize("rule", RULES)
def test_the_crop_of_a_rule_is_drawn_from_all_that_it_says(rule: ViewRule) -> None:
    digest, size = bytes(range(16)), {"width": 300, "height": 200}
    expected = crop_of(rule.seed, rule.view, digest, **size, scale=rule.scale, ratio=rule.ratio)
    assert rule.crop(digest, **size) == expected
    area = expected.width * expected.height
    assert rule.scale[0] - 0.02 <= area <= rule.scale[1] + 0.02


def checked_by_pillow(image: Image.Image, box: tuple[int, int, int, int], *, flip: bool) -> bytes:
    small = np.asarray(image.crop(box).resize((32, 32), Image.Resampling.BICUBIC))
    return hashlib.blake2b(np.ascontiguousarray(small[:, ::-1] if flip else small).tobytes()).digest()[:4]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("crop", "box"),
    [
        (Crop(0, 0, 1, 1), (0, 0, 80, 50)),
        (Crop(0.25, 0.1, 0.5, 0.8), (20, 5, 60, 45)),
        (Crop(0.9875, 0.98, 0.0125, 0.02), (79, 49, 80, 50)),
    ],
    ids=["whole", "middle", "one pixel"],
)
def test_a_check_is_the_beginning_of_the_digest_of_the_small_crop(crop: Crop, box: tuple, flip: bool) -> None:
    image = noise(80, 50, seed=3)
    assert check_of(image, replace(crop, flip=flip)) == checked_by_pillow(image, box, flip=flip)


def test_a_check_sees_another_box_a_mirror_and_one_level_of_one_pixel() -> None:
    image, crop = noise(40, 40, seed=3), Crop(0, 0, 0.5, 0.5)
    other = image.copy()
    other.putpixel((9, 9), tuple(255 - level for level in image.getpixel((9, 9))))  # type: ignore[union-attr]
    outside = image.copy()
    outside.putpixel((30, 30), (0, 255, 0))
    checks = {check_of(image, crop), check_of(image, replace(crop, flip=True)), check_of(other, crop)}
    checks.add(check_of(image, replace(crop, left=0.025)))
    assert len(checks) == 4 and {len(check) for check in checks} == {4}
    assert check_of(outside, crop) == check_of(image, crop), "what lies outside the box does not matter"
