"""Batches are begun ahead of the step that learns from them, in memory that is used again."""

from pathlib import Path

import numpy as np
import torch

from cache_schema.cache import Cache
from stages.distill.ahead import batches_ahead
from stages.distill.batches import BatchMaker
from stages.distill.config import ResolvedMethod
from stages.distill.order import EpochSequence
from stages.distill.payloads import Originals
from stages.distill.pictures import PicturesInMemory
from stages.images.preprocess import CropShape
from tests.corpora.small_corpus import small_cache

SHAPES = [CropShape((24, 24), "bicubic"), CropShape((16, 20), "bilinear")]
CPU = torch.device("cpu")


def maker_of(cache: Cache, pictures: PicturesInMemory) -> BatchMaker:
    images, texts = cache.array("image"), cache.array("text")
    return BatchMaker(
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
            steps=40,
            batch_size=20,
            text_batch_size=30,
            norm_batch_size=20,
            logit_scale=100.0,
            text_array=texts.name,
        ),
    )


def test_memory_is_that_of_the_batches_which_are_alive_and_each_has_its_own_pixels(tmp_path: Path) -> None:
    cache = small_cache(tmp_path)
    with PicturesInMemory(cache, cache.array("image").ok_rows(), SHAPES, Originals(), num_threads=1) as pictures:
        maker = maker_of(cache, pictures)
        num_begun = -(-pictures.num_begun // 20)
        expected = [{shape: np.array(p) for shape, p in maker.batch_of_step(s).pixels.items()} for s in range(40)]
        places, kept = set(), []
        for step, uploaded in enumerate(batches_ahead(maker, range(40), CPU)):
            assert uploaded.batch.step == step
            for shape in SHAPES:
                assert np.array_equal(uploaded.pixels[shape].numpy(), expected[step][shape])
                assert np.shares_memory(uploaded.pixels[shape].numpy(), uploaded.batch.pixels_BP), "nothing is copied"
            places.add(uploaded.batch.pixels_BP.ctypes.data)
            if step == 39:
                kept.append(uploaded.pixels[SHAPES[1]])
            del uploaded
    # The one in hand, the next one, and those begun behind it; one more may just be on its way out.
    assert len(places) <= 3 + num_begun
    assert np.array_equal(kept[0].numpy(), expected[39][SHAPES[1]]), "what is kept stays, also when all is closed"
