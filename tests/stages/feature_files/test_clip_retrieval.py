"""Partitions of clip-retrieval come in the order of their numbers, and only whole."""

from pathlib import Path

import numpy as np
import pytest

from cache_schema.cache import Cache
from cache_schema.errors import RefusedError
from tests.corpora.extracts import import_config, import_features
from tests.corpora.foreign_features import (
    keys_of,
    sentences_of,
    vectors,
    write_clip_retrieval,
)


def test_partitions_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    keys = keys_of(23)
    write_clip_retrieval(
        tmp_path / "out", keys, sentences_of(23), vectors(23), vectors(23, seed=1), rows_per_partition=2
    )
    both = (str(tmp_path / "out"),)
    config = import_config(tmp_path / "cache", image_features=both, text_features=both)
    summary = import_features(config)
    assert [array["ok"] for array in summary.values()] == [23, 23]
    cache = Cache.open(config.cache)
    assert cache.keys("image", np.arange(23)) == keys and cache.texts(np.arange(23)) == sentences_of(23)


@pytest.mark.parametrize("lost", ["img_emb/img_emb_1.npy", "metadata/metadata_1.parquet"])
def test_a_partition_of_which_half_is_missing_is_refused(lost: str, tmp_path: Path) -> None:
    write_clip_retrieval(tmp_path / "out", keys_of(6), keys_of(6), vectors(6), vectors(6), rows_per_partition=2)
    (tmp_path / "out" / lost).unlink()
    with pytest.raises(RefusedError, match=r"has no (img_emb_1\.npy|metadata_1\.parquet) to go with it"):
        import_features(import_config(tmp_path / "cache", image_features=(str(tmp_path / "out"),)))
