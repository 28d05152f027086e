"""What an extract will write is known before: the estimate fits the cache then made, and a full disk is met first."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.cache import Cache
from cache_schema.errors import EnvironmentProblem
from cache_schema.layout import Layout
from cache_schema.plan import Plan, SourceEntry
from stages.extract.config import ExtractConfig
from stages.extract.disk import (
    DEFAULT_ROW_BYTES,
    PendingArray,
    PendingWork,
    disk_estimate,
    most_picture_bytes,
    pending_work,
    usual_picture_bytes,
)
from stages.extract.job import open_job
from stages.extract.wanted import DECODING, WantedArray, wanted_arrays
from stages.extract.wanted_sources import grown_plans
from stages.files.free_disk import free_bytes
from stages.parts.lock import cache_at
from stages.teachers.described import load_and_describe
from tests.corpora.extracts import extract, extract_config
from tests.corpora.folders import size_of
from tests.corpora.pictures import write_pictures
from tests.corpora.small_corpus import write_random_sentences
from tests.corpora.stub_teacher import stub
from tests.corpora.tiny_cache import make_cache, recipe_for

TEACHER = stub(dim=64)
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder / "pictures", 60, sizes=[(24, 24)])
    write_random_sentences(folder / "sentences.txt", 300)
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> ExtractConfig:
    sources = data / "pictures", data / "sentences.txt"
    return extract_config(tmp_path / "cache", *sources, teacher=TEACHER, part_rows=32, index=True)


def with_free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> list[Path]:
    """Lets the disk have `free` bytes; returns the list of the paths that are asked about."""
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(10 * free, 9 * free, free))
    return asked


def test_a_part_is_a_full_shard_however_short_it_is() -> None:
    plan = Plan("image", 2048).extended([SourceEntry("/a", "tar", "0" * 64, 5000)], [{0: 0, 2048: 2048, 4096: 4096}])
    array = PendingArray("image", "a.v0", 0, 768, True, tuple(plan.parts()), index_rows=5000)
    work = PendingWork(2048, (array,), {}, {"image": 3}, {"image": 1})
    estimate = disk_estimate(work)
    assert estimate.features == {"image/a.v0": 3 * (2048 * 768 * 2 + 2 * 20 + 4)}
    assert estimate.hashes == 5000 * 16
    assert estimate.indexes == {"image/a.v0": 5000 * (768 * 4 + 8)}
    assert estimate.tables == {} and estimate.pixels == 0


def test_views_and_pixels_add_what_they_take() -> None:
    plan = Plan("image", 1024).extended([SourceEntry("/a", "tar", "0" * 64, 1000)], [{0: 0}])
    arrays = tuple(PendingArray("image", f"a.v{v}", v, 64, False, tuple(plan.parts()), 0) for v in range(3))
    parts = tuple(plan.parts())
    work = PendingWork(1024, arrays, {"image": parts}, {"image": 1}, {"image": 1}, parts, 256)
    estimate = disk_estimate(work, picture_bytes=20_000)
    assert len(set(estimate.features.values())) == 1 and len(estimate.features) == 3
    assert estimate.hashes == 1000 * (3 * 16 + 2 * 4)
    assert estimate.pixels == pytest.approx(20_000_000, rel=0.01)
    assert disk_estimate(work).pixels == pytest.approx(24_400_000, rel=0.01)
    assert estimate.tables == {"image": 3_000 + 1000 * DEFAULT_ROW_BYTES["image"]}


def test_a_million_rows_of_vit_l_take_what_the_readme_says() -> None:
    plan = Plan("image", 16_384)
    starts = {at: at for at in range(0, 1_000_000, 16_384)}
    plan = plan.extended([SourceEntry("/a", "tar", "0" * 64, 1_000_000)], [starts])
    array = PendingArray("image", "a.v0", 0, 768, False, tuple(plan.parts()), index_rows=1_000_000)
    work = PendingWork(16_384, (array,), {"image": tuple(plan.parts())}, {"image": 62}, {"image": 1})
    estimate = disk_estimate(work)
    assert estimate.features["image/a.v0"] == pytest.approx(1.54e9, rel=0.02)
    assert estimate.indexes["image/a.v0"] == pytest.approx(1.56e9, rel=0.02)
    assert estimate.total_bytes < 3.3e9


def test_the_estimate_fits_the_cache_that_is_then_extracted(config: ExtractConfig) -> None:
    cache = cache_at(config.cache, config.part_rows)
    plans = {modality: plan for modality, (plan, _) in grown_plans(config, cache, None).items()}
    recipes = load_and_describe(TEACHER, device="cpu", precision="float32", decoding=DECODING)[0]
    before = disk_estimate(pending_work(cache, config, wanted_arrays(cache, config, recipes, None), plans, None))
    assert not config.cache.exists()
    extract(config)
    for modality in ("image", "text"):
        folder = config.cache / modality
        (shards,) = (size for name, size in before.features.items() if name.startswith(modality))
        assert shards == pytest.approx(size_of(folder, "features.zarr/*/c/*/0"), rel=0.05)
        assert before.tables[modality] == pytest.approx(size_of(folder, "samples/*.parquet"), rel=0.25)
        (index,) = (size for name, size in before.indexes.items() if name.startswith(modality))
        assert index == pytest.approx(size_of(folder, "indexes/*.faiss"), rel=0.05)
    assert before.hashes == size_of(config.cache, "*/arrays/*/records/*.rows")
    whole = size_of(config.cache, "**/*")
    assert 0.9 * whole < before.total_bytes < 2 * whole


def test_stored_pictures_of_small_originals_are_assumed_to_be_small(config: ExtractConfig, data: Path) -> None:
    plan = grown_plans(replace(config, texts=()), cache_at(config.cache, config.part_rows), None)["image"][0]
    originals = [path.stat().st_size for path in sorted((data / "pictures").iterdir())[:16]]
    assert most_picture_bytes(plan, 256) == 2 * sum(originals) / 16 < usual_picture_bytes(256)
    assert most_picture_bytes(plan, 16) == usual_picture_bytes(16)
    gone = plan.extended([SourceEntry("/not/there.tar", "tar", "0" * 64, 20)], [{0: 0}])
    assert most_picture_bytes(gone, 256) == most_picture_bytes(plan, 256)


def test_only_what_is_pending_counts(config: ExtractConfig) -> None:
    def pending() -> dict[str, int]:
        cache = Cache.open(config.cache)
        arrays = [cache.array(modality, name) for modality in cache.modalities for name in cache.arrays(modality)]
        wanted = [WantedArray(array.modality, array.name, array.recipe) for array in arrays]
        plans = {array.modality: array.plan for array in arrays}
        return dict(disk_estimate(pending_work(cache, config, wanted, plans, None)).features)

    shard = disk_shard_bytes()
    extract(config, only=3)
    assert list(pending().values()) == [0, 9 * shard]
    extract(config)
    assert list(pending().values()) == [0, 0]


def disk_shard_bytes() -> int:
    return 32 * 64 * 2 + 20 + 4


def test_extract_that_does_not_fit_the_disk_is_refused_before_anything_is_written(
    config: ExtractConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = with_free_bytes(monkeypatch, 50_000)
    with pytest.raises(EnvironmentProblem) as refused, open_job(config):
        pass
    said = str(refused.value)
    assert str(config.cache) in said and "50,000 bytes free" in said and "free some space there" in said
    assert asked == [config.cache.parent] and not config.cache.exists()
    assert refused.value.exit_code == 1


def test_a_new_cache_is_measured_against_the_disk_once(config: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_free_bytes(monkeypatch, 10**9)
    extract(replace(config, index=False))
    assert asked == [config.cache.parent]


def test_a_finished_cache_on_a_full_disk_needs_nothing_more(
    config: ExtractConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(config)
    with_free_bytes(monkeypatch, 0)
    with open_job(config) as job:
        assert job.tasks == []


def test_a_cache_that_would_grow_beyond_the_disk_stays_as_it_is(
    config: ExtractConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extract(replace(config, texts=()))
    before = {path: path.stat().st_mtime_ns for path in config.cache.rglob("*") if path.is_file()}
    with_free_bytes(monkeypatch, 10_000)
    with pytest.raises(EnvironmentProblem, match="needs about"), open_job(config):
        pass
    after = {path: path.stat().st_mtime_ns for path in config.cache.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path) and "lock" not in path.name} == set()


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


def test_a_cache_that_is_not_there_lacks_everything(tmp_path: Path) -> None:
    made = make_cache(tmp_path / "made")
    config = ExtractConfig(cache=tmp_path / "none", index=False)
    wanted = [WantedArray("image", "imaginary.v0", recipe_for("image", 8))]
    plans = {"image": made.plan("image")}
    nothing_there = Cache(Layout(tmp_path / "none"), 16)
    assert len(pending_work(nothing_there, config, wanted, plans, None).arrays[0].parts) == 3
    assert pending_work(made, config, wanted, plans, None).arrays[0].parts == ()
