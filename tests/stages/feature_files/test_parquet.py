"""Features in a column of lists: which columns they may be, and what is in a list that is none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import DamagedError, RefusedError
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


def test_columns_of_one_name_are_refused_with_both_places(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table([["a"], [[1.0]], ["b"]], names=["key", "embedding", "key"]), path)
    with pytest.raises(RefusedError, match=r"2 columns 'key', at places 1 and 3 of 3"):
        import_features(import_config(tmp_path / "cache", image_features=(str(path),)))


def test_a_tensor_of_arrow_is_read_as_its_list_and_other_extensions_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    rows = pa.array([row.tolist() for row in vectors(3)], pa.list_(pa.float32(), len(vectors(1)[0])))
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [1, len(vectors(1)[0])]), rows)
    foreign = pa.field("other", rows.type, metadata={"ARROW:extension:name": "theirs"})
    schema = pa.schema([("key", pa.string()), ("embedding", tensor.type), foreign])
    pq.write_table(pa.table([keys_of(3), tensor, rows], schema=schema), path)
    counts = import_features(import_config(tmp_path / "cache", image_features=(str(path),)))
    assert counts["image/clip.v0"]["ok"] == 3
    with pytest.raises(RefusedError, match="column 'other' is of the extension type 'theirs'"):
        import_features(import_config(tmp_path / "cache2", image_features=(f"{path}?column=other",)))


def test_a_page_of_features_whose_checksum_is_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    table = pa.table({"key": ["a"], "embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float32()))})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    stored = np.array([1, 2], "<f4").tobytes()
    assert path.read_bytes().count(stored) == 1
    path.write_bytes(path.read_bytes().replace(stored, np.array([1, 3], "<f4").tobytes()))
    with pytest.raises(DamagedError, match="damaged"):
        import_features(import_config(tmp_path / "cache", image_features=(str(path),)))
