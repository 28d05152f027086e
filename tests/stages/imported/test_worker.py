"""An importer joins features to samples by place or by key, and every row without one says why."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError
from cache_schema.samples import Sample
from stages.feature_files import FeatureRow
from stages.imported.job import open_import
from stages.imported.worker import KnownFeatures, _stored
from tests.corpora.extracts import import_config, import_features, outcomes_in
from tests.corpora.foreign_features import keys_of, sentences_of, unit, vectors, write_image_tsv, write_npy
from tests.corpora.pictures import jpeg
from tests.corpora.tiny_cache import sample


def row_of(values: np.ndarray | None, status: str = "ok", reason: str = "") -> FeatureRow:
    return FeatureRow("k", values, 0, status, reason)


def samples_of(num_rows: int, bad: tuple[int, ...] = ()) -> list[Sample]:
    return [sample("text", at, index=at, status="text-empty" if at in bad else "ok") for at in range(num_rows)]


def test_every_row_is_float16_of_unit_norm_or_has_the_reason_why_not() -> None:
    values = vectors(3)
    spoilt = values[0].copy()
    spoilt[2] = np.inf
    rows = [
        row_of(values[0]),
        None,
        row_of(None, "feature-base64", "not base64"),
        row_of(values[1][:5]),
        row_of(np.zeros(8, np.float32)),
        row_of(spoilt),
        row_of(values[2]),
    ]
    stored, exceptions = _stored(samples_of(7), rows, 8)
    assert stored.dtype == np.float16 and stored.shape == (7, 8)
    np.testing.assert_allclose(stored[[0, 6]], unit(values[[0, 2]]), atol=1e-3)
    assert np.isnan(stored[1:6]).all()
    assert {at: (why.status, why.reason) for at, why in exceptions.items()} == {
        1: ("feature-missing", "no feature with this key"),
        2: ("feature-base64", "not base64"),
        3: ("feature-wrong-width", "5 values"),
        4: ("feature-zero-norm", ""),
        5: ("feature-not-finite", ""),
    }
    assert all(why.offset == at for at, why in exceptions.items())


def test_a_bad_sample_has_no_feature_whatever_there_is_for_it_and_keeps_its_own_reason() -> None:
    stored, exceptions = _stored(samples_of(3, bad=(0, 1)), [row_of(vectors(1)[0]), None, row_of(vectors(1)[0])], 8)
    assert exceptions == {} and np.isfinite(stored).all(axis=1).tolist() == [False, False, True]


def test_a_part_of_more_rows_than_are_stored_at_once_keeps_every_one_at_its_place() -> None:
    values = vectors(2500)
    rows: list[FeatureRow | None] = [row_of(row) for row in values]
    rows[1024] = rows[2047] = None
    stored, exceptions = _stored(samples_of(2500), rows, 8)
    assert sorted(exceptions) == [1024, 2047]
    there = np.setdiff1d(np.arange(2500), [1024, 2047])
    np.testing.assert_allclose(stored[there], unit(values)[there], atol=1e-3)
    assert _stored([], [], 8)[0].shape == (0, 8)


def test_a_part_reports_its_rows_the_bad_ones_and_the_seconds_of_every_stage(tmp_path: Path) -> None:
    keys = keys_of(6)
    features = write_npy(tmp_path / "f.npy", keys[:4], sentences_of(4), vectors(4))
    images = write_image_tsv(tmp_path / "i.tsv", keys, [b"" if at == 1 else jpeg(9, 8, at) for at in range(6)])
    config = import_config(
        tmp_path / "cache", image_features=(str(features),), images=(f"dime-fm:{images}",), part_rows=8
    )
    with open_import(config) as job, job.make_worker() as worker:
        (task,) = job.tasks
        report = worker(task)
        assert worker(task).num_bad == report.num_bad, "doing it twice is the same"
    assert (report.modality, report.part, report.num_rows, report.num_bad) == ("image", 0, 6, 3)
    assert set(report.seconds) == {"read", "decode", "write"}
    found = outcomes_in(config.cache)
    assert found.pop(keys[1])[0] == "img-empty"
    missing = ("feature-missing", "no feature with this key")
    assert found == {keys[0]: ("ok", ""), keys[2]: ("ok", ""), keys[3]: ("ok", ""), keys[4]: missing, keys[5]: missing}
    assert Cache.open(config.cache).array("image").record(0).numerics == "imported"


@pytest.mark.parametrize("change", ["other bytes", "gone"])
def test_a_file_that_is_not_as_it_was_planned_is_refused_by_its_path(tmp_path: Path, change: str) -> None:
    features = write_npy(tmp_path / "f.npy", keys_of(8), sentences_of(8), vectors(8))
    config = import_config(tmp_path / "cache", text_features=(str(features),))
    with open_import(config) as job, job.make_worker() as worker:
        first, second = job.tasks
        worker(first)
        known = next(iter(worker._settings.features["text"].values()))[0]
        assert isinstance(known, KnownFeatures)
        known.require_unchanged()
        if change == "gone":
            features.unlink()
        else:
            np.save(features, vectors(9))
        with pytest.raises(MismatchError, match=r"f\.npy changed since it was planned, or is gone: restore it and run"):
            known.require_unchanged()
        with pytest.raises(MismatchError, match="changed since it was planned"):
            worker(second)


def test_features_of_another_import_do_not_reach_the_parts_of_this_one(tmp_path: Path) -> None:
    first = write_npy(tmp_path / "a.npy", keys_of(4), sentences_of(4), vectors(4, seed=1))
    second = write_npy(tmp_path / "b.npy", keys_of(4), sentences_of(4), vectors(4, seed=2))
    config = import_config(tmp_path / "cache", image_features=(str(first),))
    import_features(config)
    import_features(replace(config, image_features=(str(second),)))
    array = Cache.open(config.cache).array("image")
    expected = np.concatenate([unit(vectors(4, seed=1)), unit(vectors(4, seed=2))])
    np.testing.assert_allclose(array.features.gather_unit(array.ok_rows()), expected, atol=1e-3)
