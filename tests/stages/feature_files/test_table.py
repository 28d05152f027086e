"""Keys are text or whole numbers, and none is missing."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import DamagedError, RefusedError
from tests.corpora.extracts import import_config, import_features
from tests.corpora.foreign_features import (
    keys_of,
    sentences_of,
    vectors,
    write_npy,
)


@pytest.mark.parametrize("keys", [[1.5, 2.5], [b"a", b"b"], [["a"], ["b"]]], ids=str)
def test_keys_are_text_or_whole_numbers(keys: list, tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(2), sentences_of(2), vectors(2))
    pq.write_table(pa.table({"key": keys}), path.with_suffix(".parquet"))
    with pytest.raises(RefusedError, match=r"key column 'key' is .*, not text or whole numbers"):
        import_features(import_config(tmp_path / "cache", image_features=(str(path),)))
    pq.write_table(pa.table({"id": pa.array(["a", "b"]).dictionary_encode()}), tmp_path / "keys.parquet")
    named = f"{path}?keys={tmp_path / 'keys.parquet'}&key_column=id"
    assert import_features(import_config(tmp_path / "cache", image_features=(named,)))["image/clip.v0"]["ok"] == 2


def test_a_key_that_is_missing_is_refused_with_its_row(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(3), sentences_of(3), vectors(3))
    for missing in (None, ""):
        pq.write_table(pa.table({"key": ["a", missing, "c"]}), path.with_suffix(".parquet"))
        with pytest.raises(DamagedError, match=r"f\.parquet: row 1 has no key"):
            import_features(import_config(tmp_path / "cache", image_features=(str(path),)))
