"""Features in a column of lists: which columns they may be, and what is in a list that is none."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import RefusedError
from tests.corpora.extracts import import_config, import_features, outcomes_in
from tests.corpora.foreign_features import (
    keys_of,
    vectors,
)


def test_lists_of_another_width_and_nulls_in_a_table_keep_their_rows(tmp_path: Path) -> None:
    features = [row.tolist() for row in vectors(6)]
    features[1], features[2] = features[1][:3], None
    features[3] = [None, *features[3][1:]]
    table = pa.table({"key": keys_of(6), "embedding": pa.array(features, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "f.parquet")
    import_features(import_config(tmp_path / "cache", image_features=(str(tmp_path / "f.parquet"),)))
    assert [status for status, _ in outcomes_in(tmp_path / "cache").values()] == [
        "ok",
        "feature-wrong-width",
        "feature-type",
        "feature-not-finite",
        "ok",
        "ok",
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.int64()), pa.float32()], ids=str)
def test_a_column_of_another_type_is_refused_and_the_found_ones_listed(kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"], "embedding": pa.array([None], kind)}), tmp_path / "f.parquet")
    with pytest.raises(RefusedError, match="column 'embedding' is"):
        import_features(import_config(tmp_path / "cache", image_features=(str(tmp_path / "f.parquet"),)))
    with pytest.raises(RefusedError, match=r"no column 'vector' \(found key: string, embedding"):
        import_features(import_config(tmp_path / "cache", image_features=(f"{tmp_path / 'f.parquet'}?column=vector",)))
