"""A matrix and the table of its keys have the same rows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import MismatchError
from tests.corpora.extracts import import_config, import_features
from tests.corpora.foreign_features import (
    keys_of,
    sentences_of,
    vectors,
    write_npy,
)


def test_other_numbers_of_rows_in_a_pair_are_refused_with_both_numbers(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(6), sentences_of(6), vectors(6))
    pq.write_table(pa.table({"key": keys_of(5)}), path.with_suffix(".parquet"))
    with pytest.raises(MismatchError, match=r"f\.npy has 6 rows, .*f\.parquet has 5"):
        import_features(import_config(tmp_path / "cache", image_features=(str(path),)))
