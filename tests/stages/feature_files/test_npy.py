"""A plain matrix finds the table of its keys beside it or where it is told, and says so when there is none."""

from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import PipelineError, UsageError
from stages.feature_files.npy import NpyFeatures
from tests.corpora.foreign_features import keys_of, sentences_of, vectors, write_npy

FEATURES = vectors(4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_npy(tmp_path / "a.b.npy", [f"pre/{key}" for key in keys_of(4)], sentences_of(4), FEATURES)


def test_the_table_is_the_one_of_the_same_name(path: Path) -> None:
    (features,) = NpyFeatures.expand(str(path), "image", {})
    assert features.paths == (str(path), str(path.with_name("a.b.parquet")))
    rows = features.read([2, 0])
    assert [(row.key, row.place) for row in rows] == [("pre/k0002", 2), ("pre/k0000", 0)]
    assert np.array_equal([row.values for row in rows], FEATURES[[2, 0]])


def test_a_table_may_stand_elsewhere_and_a_prefix_is_cut_off_its_keys(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.with_name("a.b.parquet").rename(path.with_name("keys.pq"))
    monkeypatch.chdir(path.parent)
    options = {"keys": "keys.pq", "prefix": "pre/"}
    (features,) = NpyFeatures.expand(str(path), "image", options)
    assert features.table_uri == str(path.with_name("keys.pq")), "a plan holds absolute paths"
    assert options == {"keys": "keys.pq", "prefix": "pre/"}, "what was asked stays as it is"
    assert [row.key for row in features.read(range(4))] == keys_of(4)


def test_a_matrix_without_a_table_is_a_usage_error_that_says_where_to_put_it(path: Path) -> None:
    path.with_name("a.b.parquet").unlink()
    said = rf"{path} does not say whose features it holds, and {path.parent}/a\.b\.parquet is not there: .*\?keys=PATH"
    with pytest.raises(UsageError, match=said):
        NpyFeatures.expand(str(path), "image", {})


@pytest.mark.parametrize("keys", ["gone.parquet", "*.nothing"])
def test_a_table_that_is_named_and_not_there_is_an_error(keys: str, path: Path) -> None:
    with pytest.raises(PipelineError, match=keys.replace("*", r"\*")):
        NpyFeatures.expand(str(path), "image", {"keys": f"{path.parent}/{keys}"})


def test_a_pattern_that_names_two_tables_is_a_usage_error(path: Path) -> None:
    path.with_name("c.parquet").write_bytes(b"")
    said = rf"\?keys={path.parent}/\*\.parquet names 2 files: name the one beside {path}"
    with pytest.raises(UsageError, match=said):
        NpyFeatures.expand(str(path), "image", {"keys": f"{path.parent}/*.parquet"})


def test_the_table_of_a_matrix_behind_an_address_is_not_looked_for() -> None:
    (features,) = NpyFeatures.expand("https://host/a.npy", "image", {})
    assert features.table_uri == "https://host/a.parquet"
