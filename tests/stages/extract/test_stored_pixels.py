"""Stored pixels: small JPEGs of exactly the images that could be decoded, from which views are cut."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, UsageError
from cache_schema.features import storable
from cache_schema.json_file import read_sealed, seal
from cache_schema.leftovers import leftovers_of
from cache_schema.repair import withdraw
from cache_schema.stored_pixels import StoredPixels, stored_pixels
from cache_schema.verify import PartOfArray, verify_cache
from stages.extract.config import ExtractConfig
from stages.images.crops import crop_of
from stages.images.preprocess import crop_pixels, normalise
from stages.teachers import load_teacher
from tests.corpora.damaged_files import cut, flip_bit
from tests.corpora.extracts import digests, extract, extract_config
from tests.corpora.pictures import encoded, noise, write_pictures
from tests.corpora.processes import result_of
from tests.corpora.stub_teacher import STUB
from tests.corpora.stub_teacher import STUB_ARRAY as NAME

SIZES = [(150, 100), (80, 120), (64, 64), (200, 90), (20, 24)]
SIDE = 48


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bad = {4: b"", 11: encoded(noise(90, 60).convert("LA"), "PNG")}
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", 20, sizes=SIZES, bad=bad)


@pytest.fixture
def config(pictures: Path, tmp_path: Path) -> ExtractConfig:
    # Originals of its own, so that a test can delete them.
    originals = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    return extract_config(tmp_path / "cache", originals, part_rows=8, batch_size=8, views=3, store_pixels=SIDE)


def pixels_of(config: ExtractConfig) -> StoredPixels:
    found = stored_pixels(Cache.open(config.cache))
    assert found is not None
    return found


def jpegs(config: ExtractConfig) -> dict[str, bytes]:
    cache, pixels = Cache.open(config.cache), pixels_of(config)
    rows = cache.array("image").ok_rows()
    places = zip(rows.tolist(), cache.locations(rows), strict=True)
    return {location.key: pixels.jpeg(row, location.digest) for row, location in places}


def files(config: ExtractConfig) -> dict[str, bytes]:
    folder = config.cache / "image" / "pixels"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_no_pixels_are_stored_unless_asked_for(config: ExtractConfig) -> None:
    extract(replace(config, store_pixels=None))
    assert stored_pixels(Cache.open(config.cache)) is None


def test_every_ok_image_is_stored_as_a_small_jpeg_and_no_other(config: ExtractConfig) -> None:
    extract(config)
    stored = jpegs(config)
    assert len(stored) == 19 and "004.png" not in stored
    for key, data in stored.items():
        original = Image.open(Path(config.images[0]) / key)
        with Image.open(io.BytesIO(data)) as small:
            assert small.format == "JPEG" and small.mode == "RGB"
            assert min(small.size) == min(SIDE, *original.size)
            assert abs(small.width / small.height - original.width / original.height) < 0.05
            expected = np.asarray(original.convert("RGB").resize(small.size, Image.Resampling.BICUBIC), np.float64)
            assert np.abs(np.asarray(small, np.float64) - expected).mean() < 16
    with pytest.raises(DamagedError, match=r"row 4 of pixels .* has no picture"):
        pixels_of(config).jpeg(4, bytes(16))
    assert verify_cache(config.cache) == [] and leftovers_of(Cache.open(config.cache)) == []
    originals = sum(path.stat().st_size for path in Path(config.images[0]).iterdir())
    assert sum(record.num_bytes for record in pixels_of(config).records()) < originals / 4


@pytest.mark.parametrize("change", [{"part_rows": 16}, {"batch_size": 3}, {"decode_workers": 2}])
def test_pixels_and_the_views_cut_from_them_are_the_same_however_they_are_extracted(
    config: ExtractConfig, change: dict
) -> None:
    other = replace(config, cache=config.cache.with_name("other"), **change)
    assert digests(extract(config)) == digests(extract(other))
    assert jpegs(config) == jpegs(other)


def test_views_are_cut_from_the_stored_pixels(config: ExtractConfig) -> None:
    extract(config)
    cache, teacher, stored = Cache.open(config.cache), load_teacher(STUB), jpegs(config)
    array = cache.array("image", f"{NAME}.v2")
    rows = array.ok_rows()
    for row, location in zip(rows.tolist(), cache.locations(rows), strict=True):
        picture = Image.open(io.BytesIO(stored[location.key])).convert("RGB")
        # The box is drawn for the size of the original, in whole pixels of it, and rounded to the small picture's.
        crop = crop_of(0, 2, location.digest, width=location.width, height=location.height)
        pixels = normalise(crop_pixels(picture, crop, teacher.preprocess)[None], teacher.preprocess)
        assert np.array_equal(array.features.gather(np.array([row])), storable(teacher.encode_images(pixels))[0])


def test_pixels_and_views_added_later_equal_those_made_at_once_and_touch_nothing(config: ExtractConfig) -> None:
    at_once = digests(extract(config))
    grown = replace(config, cache=config.cache.with_name("grown"))
    extract(replace(grown, views=1, store_pixels=None))
    before = {path: path.read_bytes() for path in grown.cache.rglob("*") if path.is_file() and path.name != "lock.json"}
    extract(replace(grown, views=1))
    assert digests(extract(replace(grown, store_pixels=None))) == at_once
    assert files(grown) == files(config)
    assert {path: path.read_bytes() for path in before} == before


def test_a_view_is_added_without_the_originals_where_pixels_are_stored(config: ExtractConfig) -> None:
    whole = digests(extract(replace(config, cache=config.cache.with_name("whole"))))
    extract(replace(config, views=1))
    shutil.rmtree(config.images[0])
    assert digests(extract(replace(config, images=()))) == whole


def test_views_cut_from_the_originals_stay_so_when_pixels_are_stored_later(config: ExtractConfig) -> None:
    whole = digests(extract(replace(config, cache=config.cache.with_name("whole"), store_pixels=None)))
    extract(replace(config, views=2, store_pixels=None))
    assert digests(extract(config)) == whole
    assert len(jpegs(config)) == 19


def test_another_size_is_refused_with_both_sizes(config: ExtractConfig) -> None:
    extract(config)
    with pytest.raises(MismatchError, match="shorter side of 48, this run asks for 32"):
        extract(replace(config, store_pixels=32))
    with pytest.raises(UsageError, match="store_pixels is 0"):
        replace(config, store_pixels=0)


def test_new_sources_are_stored_like_the_first_ones(config: ExtractConfig, tmp_path: Path) -> None:
    extract(config)
    more = tmp_path / "more"
    more.mkdir()
    (more / "a.jpg").write_bytes(encoded(noise(90, 70), "JPEG"))
    extract(replace(config, images=(str(more),), views=None, store_pixels=None))
    assert len(jpegs(config)) == 20 and pixels_of(config).pending() == []


def test_a_stop_between_pixels_and_views_costs_only_what_has_no_record(config: ExtractConfig) -> None:
    whole = digests(extract(config))
    stored = files(config)
    layout = Cache.open(config.cache).layout
    layout.pixels_record(1).unlink()
    layout.record("image", f"{NAME}.v1", 1).unlink()
    layout.record("image", f"{NAME}.v2", 0).unlink()
    assert layout.pixels(1) in leftovers_of(Cache.open(config.cache))
    assert digests(extract(config)) == whole
    assert files(config) == stored


def _foreign(path: Path) -> None:
    path.write_bytes(path.with_name("00000.arrow").read_bytes())


@pytest.mark.parametrize("damage", [flip_bit, lambda path: cut(path, 100), _foreign, Path.unlink])
def test_damaged_pixels_are_never_read_and_restored_as_the_same_file(config: ExtractConfig, damage) -> None:
    before = digests(extract(config))
    whole, at = files(config), PartOfArray("image", None, 1)
    damage(pixels_of(config).cache.layout.pixels(1))
    problems = verify_cache(config.cache)
    assert {problem.part for problem in problems} == {at}, problems
    with pytest.raises(DamagedError):
        jpegs(config)
    assert withdraw(Cache.open(config.cache), problems) == [at]
    assert digests(extract(config)) == before
    assert files(config) == whole and verify_cache(config.cache) == []


def test_repair_restores_pixels_and_what_rests_on_a_damaged_sample_table(config: ExtractConfig) -> None:
    extract(replace(config, views=2))
    whole, layout = files(config), Cache.open(config.cache).layout
    flip_bit(layout.pixels(0))
    flip_bit(layout.samples("image", 2))
    repaired = result_of("repair", config.cache)["repaired"]
    assert [(part["array"], part["part"]) for part in repaired] == [
        (None, 0),
        (f"{NAME}.v0", 2),
        (f"{NAME}.v1", 2),
    ]
    assert files(config) == whole and verify_cache(config.cache) == []


def test_pixels_without_their_rule_are_reported_and_not_guessed(config: ExtractConfig) -> None:
    extract(config)
    pixels_of(config).cache.layout.pixels_json.unlink()
    (problem,) = verify_cache(config.cache)
    assert "nobody knows how" in problem.what and problem.part is None


def test_libraries_that_would_store_other_jpegs_are_refused_with_both_versions(config: ExtractConfig) -> None:
    extract(replace(config, views=1))
    layout = Cache.open(config.cache).layout
    value = read_sealed(layout.pixels_json)
    from cache_schema import atomic

    atomic.publish_json(layout.pixels_json, seal({**value, "probe": "0" * 64, "tools": {"pillow": "1.0"}}))
    layout.pixels_record(0).unlink()
    with pytest.raises(MismatchError, match=r"pillow \d+\.\d.*begun with \(pillow 1\.0"):
        extract(replace(config, views=1))
