"""A picture that is too long for one teacher's input is that array's exception, and no fault of its source."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_schema.cache import Cache
from cache_schema.commit import commit_part
from cache_schema.publication import target_of
from cache_schema.samples import Sample
from cache_schema.stored_pixels import stored_pixels
from cache_schema.verify import verify_cache
from stages.extract.config import ExtractConfig
from tests.corpora.extracts import digests_of, extract, extract_config, import_config, import_features
from tests.corpora.foreign_features import vectors, write_npy
from tests.corpora.pictures import noise
from tests.corpora.stub_teacher import STUB, stub

# The shorter side becomes 32, so the longer one 1,920,000; of the second teacher it becomes 8 and 480,000.
LONG = (1, 60_000)
SMALL = stub(size=8, version=2)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise(40, 32).save(folder / "a.png")
    Image.new("RGB", LONG, (200, 30, 30)).save(folder / "b.png")
    noise(32, 40, seed=1).save(folder / "c.png")
    return folder


def statuses(cache: Path) -> dict[str, list[str]]:
    opened = Cache.open(cache)
    arrays = (opened.array("image", name) for name in opened.arrays("image"))
    return {array.name: [f"{s} {why}".strip() for _, _, s, why in array.outcome(0)] for array in arrays}


def test_it_is_the_arrays_exception_and_no_later_teacher_is_blocked(pictures: Path, tmp_path: Path) -> None:
    config = extract_config(tmp_path / "cache", pictures)
    extract(config)
    extract(replace(config, teacher=SMALL, add_teacher=True))
    by_teacher = sorted(statuses(config.cache).values())
    assert by_teacher == [["ok", "img-too-many-pixels over 16000000 after resize", "ok"], ["ok", "ok tiny", "ok"]]
    assert Cache.open(config.cache).samples("image", 0).column("status").to_pylist() == ["ok"] * 3
    assert verify_cache(config.cache) == []
    other = replace(config, cache=tmp_path / "other", teacher=SMALL)
    extract(other)
    extract(replace(other, teacher=STUB, add_teacher=True))
    one, two = digests_of(config.cache), digests_of(other.cache)
    assert sorted(one.values()) == sorted(two.values())


def test_its_neighbours_have_the_features_that_they_have_without_it(pictures: Path, tmp_path: Path) -> None:
    extract(extract_config(tmp_path / "with", pictures))
    (pictures / "b.png").unlink()
    extract(extract_config(tmp_path / "without", pictures))
    rows = [
        Cache.open(tmp_path / name).array("image").features.gather(np.array(at))
        for name, at in (("with", [0, 2]), ("without", [0, 1]))
    ]
    np.testing.assert_array_equal(*rows)


def test_its_crops_have_features_and_it_is_stored(pictures: Path, tmp_path: Path) -> None:
    config = extract_config(tmp_path / "cache", pictures, views=2, store_pixels=16)
    extract(config)
    view_0, view_1 = (
        Cache.open(config.cache).array("image", name) for name in Cache.open(config.cache).arrays("image")
    )
    assert (view_0.ok_rows().tolist(), view_1.ok_rows().tolist()) == ([0, 2], [0, 1, 2])
    stored = stored_pixels(Cache.open(config.cache))
    assert stored is not None and stored.records()[0].num_pictures == 3
    assert verify_cache(config.cache) == []


def test_an_import_and_a_teacher_agree_on_it(pictures: Path, tmp_path: Path) -> None:
    features = write_npy(tmp_path / "f.npy", ["a.png", "b.png", "c.png"], ["", "", ""], vectors(3))
    config = import_config(tmp_path / "cache", image_features=(str(features),), images=(str(pictures),))
    import_features(config)
    extract(ExtractConfig(cache=config.cache, teacher=STUB, add_teacher=True, index=False, decode_workers=0))
    assert sorted(map(len, statuses(config.cache).values())) == [3, 3]
    assert verify_cache(config.cache) == []


def test_the_verdict_of_a_cache_of_before_stands(pictures: Path, tmp_path: Path) -> None:
    config = extract_config(tmp_path / "cache", pictures)
    extract(config)
    cache = Cache.open(config.cache)
    array = cache.array("image")
    samples = [Sample(**row) for row in cache.samples("image", 0).to_pylist()]
    samples[1] = replace(samples[1], status="img-too-many-pixels", reason="over 16000000 after resize")
    features = array.features.gather(np.arange(2))[[0, 0, 1]]
    features[1] = np.nan
    features[2] = array.features.gather(np.array([2]))[0]
    record = array.record(0)
    commit_part(
        target_of(cache, array), 0, samples, features, part_fingerprint=record.part_fingerprint, exceptions={},
        numerics=record.numerics, seconds={}, fence=None,
    )  # fmt: skip
    before = Cache.open(config.cache).array("image").digest()
    extract(replace(config, teacher=SMALL, add_teacher=True))
    assert set(map(tuple, statuses(config.cache).values())) == {
        ("ok", "img-too-many-pixels over 16000000 after resize", "ok")
    }
    assert before in digests_of(config.cache).values()
    assert verify_cache(config.cache) == []
