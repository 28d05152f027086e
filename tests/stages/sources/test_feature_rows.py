"""Images known by their features alone: the payload of a sample is its vector, and nothing can be looked at."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.errors import MismatchError, UsageError
from cache_schema.plan import Plan, SourceEntry
from stages.feature_files import FeatureRow
from stages.sources.base import RawSample
from stages.sources.feature_rows import FeaturesSource, raw_sample_of, require_pictures
from tests.corpora.foreign_features import keys_of, sentences_of, vectors, write_npy, write_parquet


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_npy(tmp_path / "f.npy", keys_of(5), sentences_of(5), vectors(5))


def source_of(path: Path, **options: str) -> FeaturesSource:
    return FeaturesSource(str(path), "image", options)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_payload_is_the_vector_as_it_stands_in_the_file(dtype: type, tmp_path: Path) -> None:
    features = vectors(3, dim=6).astype(dtype)
    source = source_of(write_npy(tmp_path / "f.npy", keys_of(3), sentences_of(3), features))
    scan = source.scan()
    samples = list(source.read(0, 3, scan.offset_bytes(0)))
    assert [(s.key, s.payload, s.status) for s in samples] == [
        (key, row.tobytes(), "ok") for key, row in zip(keys_of(3), features, strict=True)
    ]
    assert {s.size_bytes for s in samples} == {6 * np.dtype(dtype).itemsize}
    for sample in samples:
        assert source.read_one(sample.key, sample.offset_bytes, sample.size_bytes) == sample.payload


def test_a_row_without_a_vector_keeps_its_place_its_status_and_its_reason() -> None:
    row = FeatureRow("k", None, 7, "feature-type", "not finite")
    assert raw_sample_of(row) == RawSample("k", None, 7, 0, "feature-type", "not finite")
    assert raw_sample_of(FeatureRow("k", np.array([1, 2], np.float16), 9)) == RawSample("k", b"\0\x3c\0\x40", 9, 4)


def test_the_format_and_its_options_are_those_of_the_source_and_npy_where_none_is_named(path: Path) -> None:
    parquet = write_parquet(path.with_name("g.parquet"), keys_of(4), sentences_of(4), vectors(4))
    source = source_of(parquet, format="parquet", prefix="k00")
    assert [sample.key for sample in source.read(0, 4, 0)] == ["00", "01", "02", "03"]
    assert source.options == {"format": "parquet", "prefix": "k00"}, "what a plan records stays as it is"
    assert source_of(path).features().format == "npy"
    with pytest.raises(UsageError, match=r"unknown format of features 'parket'.*did you mean 'parquet'"):
        source_of(parquet, format="parket").features()


def test_more_rows_than_the_file_holds_are_refused_after_those_that_are_there(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "g.parquet", keys_of(5), sentences_of(5), vectors(5))
    source = source_of(path, format="parquet")
    samples = source.read(3, 4, source.scan().offset_bytes(3))
    assert [next(samples).key, next(samples).key] == ["k0003", "k0004"]
    with pytest.raises(MismatchError, match=rf"{path} holds 5 features, the plan has more: it changed; restore it"):
        next(samples)


@pytest.mark.parametrize("change", ["key", "width"])
def test_a_feature_that_is_not_the_planned_one_is_not_returned(change: str, path: Path) -> None:
    source = source_of(path)
    sample = list(source.read(0, 5, 0))[2]
    keys, features = keys_of(5), vectors(5, dim=9 if change == "width" else 8)
    if change == "key":
        keys[2] = "another"
    write_npy(path, keys, sentences_of(5), features)
    with pytest.raises(MismatchError, match=rf"'k0002' in {path} is not the planned feature: it changed; restore it"):
        source.read_one(sample.key, sample.offset_bytes, sample.size_bytes)


def test_a_feature_that_became_null_is_not_returned(tmp_path: Path) -> None:
    path = tmp_path / "g.parquet"
    pq.write_table(pa.table({"key": ["a", "b"], "embedding": [[1.0, 2.0], None]}), path)
    source = source_of(path, format="parquet")
    assert [(s.payload is None, s.size_bytes) for s in source.read(0, 2, 0)] == [(False, 16), (True, 0)]
    with pytest.raises(MismatchError, match=r"'b' in .* is not the planned feature"):
        source.read_one("b", 1, 16)


def test_a_plan_with_features_alone_has_no_pictures_and_says_how_many_and_where() -> None:
    pictures = SourceEntry("/pictures", "folder", "0" * 64, 10)
    require_pictures(Plan("image", 2048), "runs/a")
    require_pictures(Plan("image", 2048).extended([pictures], [{0: 0}]), "runs/a")
    alone = [SourceEntry(f"/{name}.npy", "features", name * 64, count) for name, count in (("a", 1500), ("b", 7))]
    plan = Plan("image", 2048).extended([pictures, *alone], [{0: 0}] * 3)
    said = r"1,507 images of runs/a were imported as features without pictures \(/a\.npy\), .* into a new cache with --"
    with pytest.raises(UsageError, match=said):
        require_pictures(plan, "runs/a")
