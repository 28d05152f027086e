"""The arrays and pixels that a run asks for are those of the cache, new ones beside them, or a refusal with both."""

import hashlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError
from cache_schema.layout import Modality
from cache_schema.recipe import Recipe
from stages.extract.config import ExtractConfig
from stages.extract.wanted import DECODING, require_same_pixels, wanted_arrays, wanted_pixels
from stages.images.stored import PixelRule
from stages.images.views import rule_of
from stages.parts.lock import cache_at
from stages.teachers.described import load_and_describe
from stages.teachers.probes import probe_images
from tests.corpora.extracts import extract, extract_config
from tests.corpora.pictures import write_pictures
from tests.corpora.stub_teacher import STUB, stub
from tests.corpora.stub_teacher import STUB_ARRAY as NAME


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", 3, sizes=[(24, 20)])


@pytest.fixture
def config(pictures: Path, tmp_path: Path) -> ExtractConfig:
    return extract_config(tmp_path / "cache", pictures)


def recipes_of(specification: str = STUB) -> dict[Modality, Recipe]:
    return dict(load_and_describe(specification, device="cpu", precision="float32", decoding=DECODING)[0])


def wanted(config: ExtractConfig, specification: str = STUB) -> list[tuple[Modality, str]]:
    cache = cache_at(config.cache, config.part_rows)
    arrays = wanted_arrays(cache, config, recipes_of(specification), wanted_pixels(cache, config))
    return [(array.modality, array.name) for array in arrays]


def rules_in(config: ExtractConfig) -> list[tuple[int, int]]:
    """Returns view and seed of every crop that is wanted."""
    cache = cache_at(config.cache, config.part_rows)
    arrays = wanted_arrays(cache, config, recipes_of(), wanted_pixels(cache, config))
    return [(rule.view, rule.seed) for array in arrays if (rule := rule_of(array.recipe)) is not None]


def test_an_empty_cache_gets_view_0_of_every_modality_and_further_views_of_images_alone(config: ExtractConfig) -> None:
    assert wanted(config) == [("image", f"{NAME}.v0"), ("text", f"{NAME}.v0")]
    three = replace(config, views=3, view_seed=2**63 - 1)
    assert wanted(three) == [*(("image", f"{NAME}.v{view}") for view in range(3)), ("text", f"{NAME}.v0")]
    assert rules_in(three) == [(1, 2**63 - 1), (2, 2**63 - 1)] and rules_in(replace(config, views=2)) == [(1, 0)]


def test_what_a_run_leaves_open_is_as_the_cache_has_it(config: ExtractConfig) -> None:
    extract(replace(config, views=3, view_seed=9))
    assert rules_in(config) == [(1, 9), (2, 9)]
    assert rules_in(replace(config, views=4)) == [(1, 9), (2, 9), (3, 9)]
    assert rules_in(replace(config, views=1)) == []


def test_views_drawn_with_another_seed_are_refused_with_both_and_the_way_out(config: ExtractConfig) -> None:
    extract(replace(config, views=2, view_seed=9))
    with pytest.raises(MismatchError) as error:
        wanted(replace(config, views=2, view_seed=8))
    assert f"image array {NAME}.v1 of cache {config.cache} was drawn otherwise than this run asks" in str(error.value)
    assert "seed: 8 now, 9 then" in str(error.value)
    assert str(error.value).endswith("): drop --view-seed, or extract into a new cache")


def test_another_teacher_is_refused_with_both_names_fingerprints_and_differences(config: ExtractConfig) -> None:
    extract(config)
    other = stub(version=2)
    ours, theirs = recipes_of(other)["image"], Cache.open(config.cache).array("image").recipe
    with pytest.raises(MismatchError) as error:
        wanted(config, other)
    said = str(error.value)
    assert f"cache {config.cache} was made by {theirs.specification} ({theirs.fingerprint[:6]})" in said
    assert f"this run asks for {ours.specification} ({ours.fingerprint[:6]})" in said
    assert "version: '2' now, '1' then" in said
    assert said.endswith("use another --cache, drop --teacher, or put it beside the other with --add-teacher")


def test_a_second_teacher_of_the_same_name_gets_a_name_of_its_own_with_its_fingerprint(config: ExtractConfig) -> None:
    extract(replace(config, views=2))
    other = stub(version=2)
    mark = recipes_of(other)["image"].fingerprint[:6]
    both = replace(config, add_teacher=True, views=2)
    assert wanted(both, other)[:2] == [("image", f"{NAME}.v0-{mark}"), ("image", f"{NAME}.v1-{mark}")]
    assert wanted(both)[:2] == [("image", f"{NAME}.v0"), ("image", f"{NAME}.v1")]
    assert wanted(replace(both, views=None), other)[:2] == [("image", f"{NAME}.v0-{mark}"), ("text", f"{NAME}.v0")], (
        "the views of the first teacher are not asked of the second"
    )


def test_pixels_are_wanted_when_they_are_asked_for_and_then_stay(config: ExtractConfig) -> None:
    cache = cache_at(config.cache, config.part_rows)
    assert wanted_pixels(cache, config) is None
    new = wanted_pixels(cache, replace(config, store_pixels=16))
    assert new is not None and new.rule["side"] == 16 and new.decoding == DECODING["image"]
    assert new.tools["pillow"] == version("pillow")
    extract(replace(config, store_pixels=16))
    made = Cache.open(config.cache)
    assert wanted_pixels(made, config) == new == wanted_pixels(made, replace(config, store_pixels=16))


def test_the_probe_of_pixels_is_the_hash_of_the_jpegs_of_four_fixed_pictures(config: ExtractConfig) -> None:
    new = wanted_pixels(cache_at(config.cache, None), replace(config, store_pixels=16))
    jpegs = [PixelRule(16).encode(Image.fromarray(pixels)) for pixels in probe_images()[:4]]
    assert new is not None and new.probe == hashlib.sha256(b"".join(jpegs)).hexdigest()
    require_same_pixels(new)


def test_pixels_of_another_size_are_refused_with_both_sizes(config: ExtractConfig) -> None:
    extract(replace(config, store_pixels=16))
    with pytest.raises(MismatchError, match=r"shorter side of 16, this run asks for 17: drop --store-pixels, or"):
        wanted_pixels(Cache.open(config.cache), replace(config, store_pixels=17))


def test_libraries_that_store_pictures_otherwise_are_named_with_both_versions(config: ExtractConfig) -> None:
    new = wanted_pixels(cache_at(config.cache, None), replace(config, store_pixels=16))
    assert new is not None
    begun = replace(new, probe="f" * 64, tools={"pillow": "1.0", "jpeg": "6b"})
    with pytest.raises(MismatchError) as error:
        require_same_pixels(begun)
    said = str(error.value)
    assert f"pillow {version('pillow')}) store pictures otherwise" in said and "(jpeg 6b, pillow 1.0; probe" in said
    assert f"{new.probe[:12]} now, {'f' * 12} then" in said


def test_views_are_cut_from_stored_pixels_where_there_are_some_unless_they_were_begun_from_originals(
    config: ExtractConfig,
) -> None:
    def cut_from(asked: ExtractConfig) -> list[object]:
        cache = cache_at(asked.cache, asked.part_rows)
        arrays = wanted_arrays(cache, asked, recipes_of(), wanted_pixels(cache, asked))
        return [array.recipe.preprocess["crop"]["pictures"] for array in arrays if array.recipe.view]

    assert cut_from(replace(config, views=2)) == ["originals"]
    (stored,) = cut_from(replace(config, views=2, store_pixels=16))
    assert isinstance(stored, dict) and stored["side"] == 16
    extract(replace(config, views=2))
    assert cut_from(replace(config, views=3, store_pixels=16)) == ["originals"] * 2
