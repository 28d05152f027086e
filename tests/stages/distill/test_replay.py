"""A student sees the teacher's views again: the same boxes of the same pictures, and a drifted library is noticed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.errors import MismatchError, UnfinishedError, UsageError
from cache_schema.json_file import read_sealed, seal
from cache_schema.progress import silent
from stages.distill.config import DistillConfig
from stages.distill.resolve import open_job
from stages.distill.run import TrainingStopped, distill
from stages.images import views
from stages.images.preprocess import Preprocess, crop_pixels
from stages.runs.folder import RunFolder
from stages.runs.record import read_record
from tests.corpora.extracts import extract, extract_config
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import write_sources
from tests.corpora.stub_teacher import STUB_ARRAY as NAME


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `plain` (three views of the originals) and `stored` (three views of stored pixels)."""
    folder = tmp_path_factory.mktemp("corpus")
    pictures, sentences = write_sources(folder, num_images=24, num_texts=30)
    extract(extract_config(folder / "plain", pictures, sentences, views=3))
    extract(extract_config(folder / "stored", pictures, sentences, views=3, store_pixels=36))
    return folder


@pytest.fixture
def config(made: Path, tmp_path: Path) -> DistillConfig:
    return distill_config(made / "stored", tmp_path / "run", steps=5, batch_size=16, text_batch_size=20)


def batches(config: DistillConfig, steps: range = range(4)) -> list:
    """Returns the batches of `steps`, made as training makes them."""
    job = open_job(config)
    shapes = [job.student.preprocess.crop_shape]
    with job.feed.open_pictures(shapes, num_workers=config.decode_workers, progress=silent) as pictures:
        maker = job.feed.batch_maker(pictures, job.method)
        return [maker.batch_of_step(step) for step in steps]


def asked(config: DistillConfig) -> dict:
    return dict(read_record(RunFolder(config.out)).asked)


@pytest.mark.parametrize("cache", ["plain", "stored"])
def test_every_epoch_replays_the_next_view_with_its_own_features_and_boxes(
    config: DistillConfig, made: Path, cache: str
) -> None:
    config = replace(config, cache=made / cache)
    job = open_job(config)
    assert [array.name for array in job.feed.replay.arrays] == [f"{NAME}.v1", f"{NAME}.v2"]
    found = batches(config)
    opened = Cache.open(config.cache)
    for step, batch in enumerate(found):
        epochs = job.feed.sequence.visits_of_step(step).epochs
        for place, row in enumerate(batch.rows.tolist()):
            array = opened.array("image", f"{NAME}.v{1 + epochs[place] % 2}")
            assert np.array_equal(batch.teacher_image_BD[place], array.features.gather_unit(np.array([row]))[0])
    if cache == "plain":
        from PIL import Image

        from stages.images.crops import crop_of

        (location,) = opened.locations(found[0].rows[:1])
        picture = Image.open(Path(location.uri) / location.key).convert("RGB")
        crop = crop_of(0, 1, location.digest, width=picture.width, height=picture.height)
        shape = job.student.preprocess.crop_shape
        assert np.array_equal(found[0].pixels[shape][0], crop_pixels(picture, crop, shape))


@pytest.mark.parametrize("change", [{"picture_memory_bytes": 0}, {"picture_memory_bytes": 0, "decode_workers": 0}])
def test_replayed_batches_are_the_same_from_memory_and_streamed_with_any_number_of_workers(
    config: DistillConfig, made: Path, change: dict
) -> None:
    for cache in ("plain", "stored"):
        mine = replace(config, cache=made / cache)
        for ours, theirs in zip(batches(mine, range(2, 4)), batches(replace(mine, **change))[2:], strict=True):
            for field in ("rows", "teacher_image_BD", "text_TD"):
                assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field
            for shape, pixels_BHWC in ours.pixels.items():
                assert np.array_equal(pixels_BHWC, theirs.pixels[shape])


def test_one_view_may_be_named_and_view_0_means_crops_of_the_students_own(config: DistillConfig) -> None:
    only = open_job(replace(config, image_array=f"{NAME}.v2"))
    assert [array.name for array in only.feed.replay.arrays] == [f"{NAME}.v2"] and only.feed.images.name == f"{NAME}.v0"
    own = open_job(replace(config, image_array=f"{NAME}.v0"))
    assert own.feed.replay is None and own.feed.small is not None
    assert open_job(replace(config, image_array=f"{NAME}.v0", pictures="originals")).feed.small is None


def test_a_run_says_which_views_and_pictures_it_used_and_a_resumed_one_is_bit_identical(config: DistillConfig) -> None:
    said: list[str] = []
    distill(config, notice=said.append)
    assert any("views 1, 2 are replayed in turn, cut from the stored pixels" in sentence for sentence in said)
    assert asked(config)["pictures"] == "stored, in memory" and len(asked(config)["views"]) == 2
    again = replace(config, out=config.out.with_name("again"))
    with pytest.raises(TrainingStopped):
        distill(again, should_stop=stop_after(2))
    distill(again)
    weights = [run.out / "model" / "image_tower.safetensors" for run in (config, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with pytest.raises(MismatchError, match="views"):
        distill(replace(config, image_array=f"{NAME}.v1"))


def test_training_from_stored_pixels_needs_no_originals(config: DistillConfig, made: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(made / "stored", tmp_path / "copy")
    plan = cache / "image" / "plan.json"
    value = read_sealed(plan)
    for source in value["sources"]:
        source["uri"] = str(tmp_path / "deleted")
    atomic.publish_json(plan, seal(value))
    result = distill(replace(config, cache=cache, steps=2))
    assert result["steps"] == 2
    assert json.loads((config.out / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


@pytest.mark.parametrize("memory", [2 << 30, 0])
def test_another_resize_is_noticed_by_the_check_with_key_row_view_and_versions(
    config: DistillConfig, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a library would that resizes otherwise than the one that the teacher had.
    monkeypatch.setattr(views, "_SMALL", Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3, interpolation="bilinear"))
    with pytest.raises(MismatchError, match=r"view 1 of '\d+\.png' \(row \d+\) has check .* Pillow .* now, .* then"):
        batches(replace(config, picture_memory_bytes=memory, decode_workers=0))


def test_a_view_of_other_pictures_than_asked_for_is_refused(config: DistillConfig, made: Path) -> None:
    with pytest.raises(MismatchError, match=r"pictures originals is asked for.*cut from the pictures 'stored'"):
        open_job(replace(config, pictures="originals"))
    with pytest.raises(MismatchError, match=r"pictures stored is asked for.*cut from the pictures 'originals'"):
        open_job(replace(config, cache=made / "plain", pictures="stored"))
    with pytest.raises(UsageError, match="stores no pixels"):
        open_job(replace(config, cache=made / "plain", pictures="stored", image_array=f"{NAME}.v0"))


def test_an_unfinished_view_or_pixels_that_are_needed_are_refused_with_the_progress(
    config: DistillConfig, made: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(made / "stored", tmp_path / "copy")
    layout = Cache.open(cache).layout
    layout.pixels_record(1).unlink()
    with pytest.raises(UnfinishedError, match="1 of 2 parts have them"):
        open_job(replace(config, cache=cache))
    assert open_job(replace(config, cache=cache, image_array=f"{NAME}.v0")).feed.small is None
    layout.record("image", f"{NAME}.v2", 0).unlink()
    with pytest.raises(UnfinishedError, match=r"\.v2.*1 of 2 parts"):
        open_job(replace(config, cache=cache))
