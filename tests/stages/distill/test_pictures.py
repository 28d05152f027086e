"""Pictures are kept in memory where they fit, cut in every shape at once, and decoded again when a decoder was late."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache_schema.cache import Cache, ImageLocation
from cache_schema.errors import EnvironmentProblem
from stages.distill import streamed_pictures
from stages.distill.payloads import Originals
from stages.distill.pictures import BegunCrops, Crops, Pictures, PicturesInMemory, fit_in_memory
from stages.distill.streamed_pictures import PicturesStreamed
from stages.images.crops import Crop, crop_of
from stages.images.decode import Limits
from stages.images.preprocess import CropShape, crop_box
from tests.corpora.extracts import extracted_cache
from tests.corpora.faulty_decoders import LatePlan, MeetingPlan
from tests.corpora.pictures import jpeg
from tests.corpora.small_corpus import small_cache, write_sources

SMALL, WIDE = CropShape((16, 16), "bicubic"), CropShape((20, 36), "bilinear")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """JPEGs that a decoder may read at a fraction of their size."""
    folder = tmp_path_factory.mktemp("large")
    _, sentences = write_sources(folder, num_images=1, num_texts=4)
    (folder / "large").mkdir()
    for number in range(6):
        (folder / "large" / f"{number}.jpg").write_bytes(jpeg(320, 300, number))
    return extracted_cache(folder / "cache", folder / "large", sentences)


def cut(cache: Cache, made: Pictures, num_rows: int = 6) -> Crops:
    """Returns one crop of the first rows, most of each picture."""
    rows = np.arange(num_rows)
    locations = cache.locations(rows)
    crops = [crop_of(1, 1, at.digest, width=at.width, height=at.height, scale=(0.8, 1.0)) for at in locations]
    with made:
        return made.crops(rows, locations, crops, np.zeros(num_rows, bool))


def by_pillow(cache: Cache, row: int, shape: CropShape) -> np.ndarray:
    (at,) = cache.locations(np.array([row]))
    image = Image.open(Path(at.uri) / at.key).convert("RGB")
    crop = crop_of(1, 1, at.digest, width=at.width, height=at.height, scale=(0.8, 1.0))
    resampling = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[shape.interpolation]
    part = image.crop(crop_box(crop, *image.size)).resize(shape.size[::-1], resampling)
    return np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else part)


def test_whether_pictures_fit_in_memory_is_judged_from_the_sample_tables(cache: Cache) -> None:
    rows = cache.array("image").ok_rows()
    assert fit_in_memory(cache, rows, len(rows) * 40 * 40 * 4)
    assert not fit_in_memory(cache, rows, len(rows) * 40 * 40 * 4 - 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda cache, shapes: PicturesInMemory(cache, np.arange(6), shapes, Originals(), num_threads=2),
        lambda cache, shapes: PicturesStreamed(shapes, Originals(), num_workers=0, reduce_for=None),
        lambda cache, shapes: PicturesStreamed(shapes, Originals(), num_workers=1, reduce_for=(20, 36)),
    ],
    ids=["in memory", "inline", "in a process"],
)
def test_every_crop_comes_in_every_shape_as_pillow_cuts_it(
    cache: Cache, make: Callable[[Cache, list[CropShape]], Pictures]
) -> None:
    both = cut(cache, make(cache, [SMALL, WIDE])).pixels
    assert list(both) == [SMALL, WIDE]
    for shape in (SMALL, WIDE):
        alone = cut(cache, make(cache, [shape])).pixels[shape]
        assert np.array_equal(both[shape], alone)
        for row in (0, 5):
            assert np.array_equal(alone[row], by_pillow(cache, row, shape))


def test_a_jpeg_is_reduced_for_the_largest_shape_of_all_whoever_asks(large: Cache) -> None:
    def small_of(shapes: list[CropShape], reduce_for: tuple[int, int] | None) -> np.ndarray:
        return cut(large, PicturesStreamed(shapes, Originals(), num_workers=0, reduce_for=reduce_for)).pixels[SMALL]

    big = CropShape((200, 200), "bicubic")
    together = small_of([SMALL, big], (200, 200))
    assert np.array_equal(small_of([SMALL], (200, 200)), together)
    assert not np.array_equal(small_of([SMALL], SMALL.size), together), "at a smaller fraction pixels differ a little"
    assert np.array_equal(small_of([SMALL], None)[0], by_pillow(large, 0, SMALL))


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Returns a function that makes decoders late as often as is asked, and gives what is said of it."""

    def make(times: int) -> list[str]:
        for number in range(times):
            (tmp_path / f"{number}").touch()
        return []

    monkeypatch.setenv("LATE", str(tmp_path))
    monkeypatch.setattr(streamed_pictures, "TrainingPreparation", LatePlan)
    return make


def streamed(said: list[str]) -> PicturesStreamed:
    quick: dict[str, Any] = {"limits": Limits(seconds=0.5), "notice": said.append}
    return PicturesStreamed([SMALL], Originals(), num_workers=1, reduce_for=None, **quick)


@pytest.mark.parametrize("times", [1, 2])
def test_a_decoder_that_was_late_decodes_again_and_it_is_said_once(
    cache: Cache, late: Callable[[int], list[str]], times: int
) -> None:
    said = late(times)
    found = cut(cache, streamed(said), 1).pixels[SMALL]
    assert np.array_equal(found[0], by_pillow(cache, 0, SMALL))
    (sentence,) = said
    assert sentence.startswith("1 pictures are decoded again, among them '0000.png'") and "img-timeout" in sentence


def test_a_decoder_that_is_always_late_is_the_fault_of_the_machine_and_not_of_pillow(
    cache: Cache, late: Callable[[int], list[str]]
) -> None:
    with pytest.raises(EnvironmentProblem) as problem:
        cut(cache, streamed(late(50)), 1)
    assert "lacks time or memory for its decode processes; use fewer --decode-workers" in str(problem.value)
    assert "failed 3 times" in str(problem.value) and "Pillow" not in str(problem.value)


def begun(made: Pictures, cache: Cache, *places: int) -> BegunCrops:
    rows = np.array(places)
    locations = cache.locations(rows)
    crops = [crop_of(1, 1, at.digest, width=at.width, height=at.height, scale=(0.8, 1.0)) for at in locations]
    return made.begin(rows, locations, crops, np.zeros(len(rows), bool))


def test_workers_that_have_nothing_to_do_go_on_with_the_next_step(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEETING", str(tmp_path))
    monkeypatch.setattr(streamed_pictures, "TrainingPreparation", MeetingPlan)
    asked: dict[str, Any] = {"num_workers": 2, "reduce_for": None, "limits": Limits(seconds=5.0)}
    with PicturesStreamed([SMALL], Originals(), **asked) as made:
        steps = [begun(made, cache, row) for row in (0, 5)]
        for row, step in zip((0, 5), steps, strict=True):
            assert np.array_equal(step.result().pixels[SMALL][0], by_pillow(cache, row, SMALL))


class Reading(Originals):
    """Remembers which rows were read, and lets a reader pass when `num_meeting` of them read at the same time."""

    def __init__(self, num_meeting: int = 1) -> None:
        super().__init__()
        self.rows: list[int] = []
        self._meeting = threading.Barrier(num_meeting, timeout=10)

    def payload(self, row: int, location: ImageLocation) -> bytes:
        self._meeting.wait()
        # The first of several that are read at the same time takes longest.
        time.sleep(0.02 if row % 8 == 0 else 0)
        self.rows.append(row)
        return super().payload(row, replace(location, uri=location.uri.removesuffix(".gz")))


def test_as_many_tasks_are_read_at_a_time_as_there_are_workers_and_readers(cache: Cache) -> None:
    with PicturesStreamed([SMALL], Reading(4), num_workers=1, num_readers=3, reduce_for=None) as made:
        steps = [begun(made, cache, row) for row in range(4)]
        assert all(
            np.array_equal(step.result().pixels[SMALL][0], by_pillow(cache, row, SMALL))
            for row, step in enumerate(steps)
        )


def test_a_compressed_container_is_read_from_front_to_end_by_however_many_threads(cache: Cache) -> None:
    read = Reading()
    rows = np.random.default_rng(0).permutation(40)
    locations = [replace(at, uri=f"{at.uri}.gz") for at in cache.locations(rows)]
    with PicturesStreamed([SMALL], read, num_workers=2, num_readers=6, reduce_for=None) as made:
        whole = made.crops(rows, locations, [Crop(0, 0, 1, 1)] * 40, np.zeros(40, bool))
    assert read.rows == list(range(40))
    assert whole.pixels[SMALL].shape == (40, 16, 16, 3)


def test_who_waits_for_pictures_is_let_go_when_they_are_closed(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEETING", str(tmp_path))
    monkeypatch.setattr(streamed_pictures, "TrainingPreparation", MeetingPlan)
    made = PicturesStreamed([SMALL], Originals(), num_workers=1, reduce_for=None)
    steps = [begun(made, cache, 0), begun(made, cache, *range(6))]
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    started = time.monotonic()
    made.close()
    assert time.monotonic() - started < 5
    for step in steps:
        with pytest.raises((EnvironmentProblem, CancelledError)):
            step.result()
