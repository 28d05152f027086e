"""What a step sees: the right crops with the right features, the same whatever the number of workers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError
from stages.distill.batches import BatchMaker
from stages.distill.config import ResolvedMethod
from stages.distill.order import EpochSequence
from stages.distill.payloads import Originals
from stages.distill.pictures import PicturesInMemory
from stages.distill.streamed_pictures import PicturesStreamed
from stages.images.crops import crop_of
from stages.images.preprocess import Preprocess, crop_pixels
from stages.prefetch import prefetched
from tests.corpora.damaged_files import flip_bit
from tests.corpora.extracts import extracted_cache
from tests.corpora.small_corpus import small_cache, write_sources

PREPROCESS = Preprocess(size=(24, 24), mean=(0.5,) * 3, std=(0.25,) * 3)
SHAPE = PREPROCESS.crop_shape


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("corpus"))


def _maker(cache, pictures, **changes):
    images, texts = cache.array("image"), cache.array("text")
    maker = BatchMaker(
        cache=cache,
        images=images,
        texts=texts,
        sequence=EpochSequence(images.ok_rows(), 20, cache.part_rows, 3),
        pictures=pictures,
        neighbours=None,
        text_rows=texts.ok_rows(),
        method=ResolvedMethod(
            cache=cache.path,
            student="none",
            steps=5,
            batch_size=20,
            text_batch_size=30,
            norm_batch_size=20,
            logit_scale=100.0,
            text_array=texts.name,
            seed=3,
            min_crop=0.2,
        ),
    )
    return replace(maker, method=replace(maker.method, **changes))


def _in_memory(cache, num_threads=2):
    return PicturesInMemory(cache, cache.array("image").ok_rows(), [SHAPE], Originals(), num_threads=num_threads)


def test_pixels_are_the_crops_of_the_rows_and_features_are_the_rows_of_zarr(cache):
    import zarr

    with _in_memory(cache) as pictures:
        maker = _maker(cache, pictures)
        batch = maker.batch_of_step(4)
    visits = maker.sequence.visits_of_step(4)
    assert len(np.unique(visits.epochs)) == 2, "the step spans the end of an epoch"
    features = zarr.open_group(cache.layout.features("image"), mode="r")[cache.arrays("image")[0]][:]
    expected = features[batch.rows].astype(np.float32)
    assert np.allclose(batch.teacher_image_BD, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    for place in (0, 7, 19):
        (location,) = cache.locations(batch.rows[place : place + 1])
        image = Image.open(Path(location.uri) / location.key).convert("RGB")
        crop = crop_of(
            3, int(visits.epochs[place]) + 1, location.digest, width=image.width, height=image.height, scale=(0.2, 1.0)
        )
        assert np.array_equal(batch.pixels[SHAPE][place], crop_pixels(image, crop, PREPROCESS))


def test_memory_and_stream_any_number_of_workers_and_any_start_give_the_same_batches(cache):
    with _in_memory(cache, num_threads=1) as pictures:
        reference = [_maker(cache, pictures).batch_of_step(step) for step in range(4)]
    for make in (
        lambda: _in_memory(cache, num_threads=3),
        lambda: PicturesStreamed([SHAPE], Originals(), num_workers=0, reduce_for=SHAPE.size),
        lambda: PicturesStreamed([SHAPE], Originals(), num_workers=2, reduce_for=SHAPE.size),
    ):
        with make() as pictures:
            found = list(prefetched(map(_maker(cache, pictures).batch_of_step, range(2, 4))))
        for ours, theirs in zip(found, reference[2:], strict=True):
            assert ours.step == theirs.step
            for field in ("rows", "teacher_image_BD", "text_TD"):
                assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field
            assert np.array_equal(ours.pixels[SHAPE], theirs.pixels[SHAPE])


def test_without_flip_no_crop_is_mirrored(cache):
    with _in_memory(cache) as pictures:
        maker = _maker(cache, pictures)
        crops = maker._crops(cache.locations(np.arange(40)), np.zeros(40, np.int64))
        straight = _maker(cache, pictures, flip=False)
        unflipped = straight._crops(cache.locations(np.arange(40)), np.zeros(40, np.int64))
    assert {crop.flip for crop in crops} == {True, False}
    assert [replace(crop, flip=False) for crop in crops] == unflipped


def test_a_picture_that_changed_since_the_teacher_saw_it_is_refused_by_its_key(tmp_path):
    pictures, sentences = write_sources(tmp_path, num_images=20, num_texts=30)
    cache = extracted_cache(tmp_path / "cache", pictures, sentences)
    flip_bit(pictures / "0007.png")
    with pytest.raises(MismatchError, match=r"'0007\.png'.*the teacher saw"):
        _in_memory(cache)
    with (
        PicturesStreamed([SHAPE], Originals(), num_workers=0, reduce_for=SHAPE.size) as streamed,
        pytest.raises(MismatchError, match=r"'0007\.png'"),
    ):
        _maker(cache, streamed).batch_of_step(0)
