"""Views are drawn from bytes alone, every output of a part commits by itself, and a cache may get more views later."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError, UsageError
from cache_schema.features import storable
from cache_schema.leftovers import leftovers_of
from cache_schema.repair import withdraw
from cache_schema.verify import verify_cache
from cache_schema.view_checks import read_checks
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.images.crops import crop_of
from stages.images.preprocess import Preprocess, crop_pixels, normalise
from stages.images.views import check_of
from stages.teachers import load_teacher
from tests.corpora.damaged_files import DAMAGE
from tests.corpora.extracts import digests, extract, extract_config
from tests.corpora.pictures import encoded, noise, write_pictures
from tests.corpora.stub_teacher import STUB, stub
from tests.corpora.stub_teacher import STUB_ARRAY as NAME

SIZES = [(90, 40), (33, 64), (64, 64), (120, 80), (20, 21)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    bad = {4: b"", 7: encoded(Image.new("RGB", (40, 40), "white"), "JPEG", quality=100)}
    return write_pictures(folder, 22, sizes=SIZES, format_name="JPEG", bad=bad, quality=92)


@pytest.fixture
def config(pictures: Path, tmp_path: Path) -> ExtractConfig:
    return extract_config(tmp_path / "cache", pictures, part_rows=8, batch_size=8, views=3)


def test_one_view_is_the_default_and_further_ones_stand_beside_it(config: ExtractConfig) -> None:
    assert list(extract(replace(config, views=None))) == [f"image/{NAME}.v0"]
    made = digests(extract(config))
    assert list(made) == [f"image/{NAME}.v0", f"image/{NAME}.v1", f"image/{NAME}.v2"]
    assert len(set(made.values())) == 3
    assert verify_cache(config.cache) == []
    assert leftovers_of(Cache.open(config.cache)) == []


def test_the_feature_and_the_check_of_a_view_are_those_of_its_box(config: ExtractConfig, pictures: Path) -> None:
    extract(replace(config, view_seed=5))
    cache, teacher = Cache.open(config.cache), load_teacher(STUB)
    preprocess: Preprocess = teacher.preprocess
    for view in (1, 2):
        array = cache.array("image", f"{NAME}.v{view}")
        rows = array.ok_rows()
        assert 4 not in rows and len(rows) == 21
        checks = [read_checks(cache.layout.view_checks("image", array.name, p), array.record(p)) for p in range(3)]
        for row, location in zip(rows.tolist(), cache.locations(rows), strict=True):
            picture = Image.open(pictures / location.key).convert("RGB")
            crop = crop_of(5, view, location.digest, width=picture.width, height=picture.height)
            pixels = normalise(crop_pixels(picture, crop, preprocess)[None], preprocess)
            assert np.array_equal(array.features.gather(np.array([row])), storable(teacher.encode_images(pixels))[0])
            assert checks[row // 8][row % 8].tobytes() == check_of(picture, crop)
        assert not checks[0][4].any(), "a row without a feature has no check"


@pytest.mark.parametrize("change", [{"part_rows": 16}, {"batch_size": 3}, {"decode_workers": 2}])
def test_the_digest_of_every_view_is_the_same_however_it_is_extracted(config: ExtractConfig, change: dict) -> None:
    other = replace(config, cache=config.cache.with_name("other"), **change)
    assert digests(extract(config)) == digests(extract(other))


def test_views_added_later_equal_views_made_at_once_and_touch_nothing_that_is_there(config: ExtractConfig) -> None:
    at_once = digests(extract(config))
    grown = replace(config, cache=config.cache.with_name("grown"))
    extract(replace(grown, views=1))
    before = {path: path.read_bytes() for path in grown.cache.rglob("*") if path.is_file() and path.name != "lock.json"}
    extract(replace(grown, views=2))
    assert digests(extract(grown)) == at_once
    assert {path: path.read_bytes() for path in before} == before


def test_a_stop_between_the_outputs_of_a_part_costs_only_what_has_no_record(config: ExtractConfig) -> None:
    whole = digests(extract(config))
    layout = Cache.open(config.cache).layout
    layout.record("image", f"{NAME}.v1", 0).unlink()
    layout.record("image", f"{NAME}.v2", 0).unlink()
    layout.record("image", f"{NAME}.v2", 2).unlink()
    with open_job(config) as job:
        assert [(task.part.number, task.arrays) for task in job.tasks] == [
            (0, (f"{NAME}.v1", f"{NAME}.v2")),
            (2, (f"{NAME}.v2",)),
        ]
    assert len(leftovers_of(Cache.open(config.cache))) == 9
    assert digests(extract(config)) == whole
    assert verify_cache(config.cache) == []


def test_new_sources_and_a_second_teacher_continue_the_views_over_the_same_rows(
    config: ExtractConfig, tmp_path: Path
) -> None:
    extract(replace(config, view_seed=9))
    more = tmp_path / "more"
    more.mkdir()
    (more / "a.jpg").write_bytes(encoded(noise(50, 50), "JPEG"))
    extract(replace(config, images=(str(more),), views=None))
    second = replace(config, images=(), teacher=stub(version=2), add_teacher=True, views=2)
    names = list(extract(second))
    cache = Cache.open(config.cache)
    assert {name: cache.array("image", name).num_rows for name in cache.arrays("image")} == dict.fromkeys(
        [f"{NAME}.v0", f"{NAME}.v1", f"{NAME}.v2", *(name.removeprefix("image/") for name in names)],
        23,
    )
    assert {cache.array("image", f"{NAME}.v{view}").recipe.preprocess["crop"]["seed"] for view in (1, 2)} == {9}
    assert verify_cache(config.cache) == []


def test_views_of_another_seed_are_refused_with_both_seeds(config: ExtractConfig) -> None:
    extract(config)
    with pytest.raises(MismatchError, match=r"make\.v1.*crop\.seed: 3 now, 0 then"):
        extract(replace(config, view_seed=3))
    with pytest.raises(UsageError, match="views is 0"):
        replace(config, views=0)


@pytest.mark.parametrize("damage", ["one bit flipped", "one byte short", "deleted"])
def test_damaged_view_checks_are_found_and_made_again(config: ExtractConfig, damage: str) -> None:
    whole = digests(extract(config))
    path = Cache.open(config.cache).layout.view_checks("image", f"{NAME}.v2", 1)
    checks = path.read_bytes()
    DAMAGE[damage](path)
    (problem,) = verify_cache(config.cache)
    assert "view checks" in problem.what and problem.part is not None
    assert [(part.array, part.part) for part in withdraw(Cache.open(config.cache), [problem])] == [(f"{NAME}.v2", 1)]
    assert digests(extract(config)) == whole
    assert path.read_bytes() == checks
    assert verify_cache(config.cache) == []


def test_a_bad_picture_is_counted_once_however_many_views_there_are(config: ExtractConfig) -> None:
    settings = replace(config, max_bad_fraction=1 / 22)
    with open_job(settings) as job, job.make_worker() as worker:
        reports = [worker(task) for task in job.tasks]
    assert [report.num_bad for report in reports] == [1, 0, 0]
    for report in reports:
        job.count_bad(report.modality, report.num_bad)


def test_without_a_name_the_only_array_of_view_0_is_meant(config: ExtractConfig) -> None:
    extract(config)
    assert Cache.open(config.cache).array("image").name == f"{NAME}.v0"
