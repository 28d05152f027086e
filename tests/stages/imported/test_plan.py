"""Features and samples are joined by their keys; what cannot belong together is refused before anything is written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError, RefusedError, TooManyBadRows, UsageError
from cache_schema.samples import digest_of
from cache_schema.verify import verify_cache
from stages.imported.job import open_import
from tests.corpora.extracts import import_config, import_features, outcomes_in
from tests.corpora.foreign_features import (
    keys_of,
    sentences_of,
    unit,
    vectors,
    write_clip_retrieval,
    write_feature_tsv,
    write_image_tsv,
    write_npy,
    write_parquet,
)
from tests.corpora.pictures import jpeg


def test_growing_appends_parts_and_keys_need_be_unique_only_among_files_imported_together(tmp_path: Path) -> None:
    # As in large sets, every file counts its keys from the start.
    for number in (0, 1):
        features, payloads = vectors(6, seed=number), [jpeg(9, 8, 10 * number + at) for at in range(6)]
        write_feature_tsv(tmp_path / f"image_{number}.feat.tsv", keys_of(6), features)
        write_image_tsv(tmp_path / f"image_{number}.tsv", keys_of(6), payloads)
    of = [
        import_config(
            tmp_path / "cache",
            image_features=(str(tmp_path / f"image_{number}.feat.tsv"),),
            images=(str(tmp_path / f"image_{number}.tsv"),),
        )
        for number in (0, 1)
    ]
    first = import_features(of[0])["image/clip.v0"]
    grown = import_features(of[1])["image/clip.v0"]
    assert (first["rows"], grown["rows"], grown["bad"]) == (6, 12, 0) and verify_cache(of[0].cache) == []
    array = Cache.open(of[0].cache).array("image")
    expected = unit(np.concatenate([vectors(6, seed=0), vectors(6, seed=1)]))
    np.testing.assert_allclose(array.features.gather_unit(array.ok_rows()), expected, atol=1e-3)
    together = replace(
        of[0],
        cache=tmp_path / "together",
        image_features=(*of[0].image_features, *of[1].image_features),
        images=(*of[0].images, *of[1].images),
    )
    with pytest.raises(RefusedError, match=r"key 'k000.' has a feature in .*image_0.* and another one in .*image_1"):
        import_features(together)
    assert import_features(replace(together, cache=of[0].cache))["image/clip.v0"]["digest"] == grown["digest"]


def test_a_key_on_one_side_only_is_a_bad_row_or_is_counted(tmp_path: Path) -> None:
    write_feature_tsv(tmp_path / "f.tsv", keys_of(10, first=3), vectors(10))
    write_image_tsv(tmp_path / "i.tsv", keys_of(8), [jpeg(9, 8, at) for at in range(8)])
    config = import_config(
        tmp_path / "cache", image_features=(str(tmp_path / "f.tsv"),), images=(str(tmp_path / "i.tsv"),)
    )
    with open_import(config) as job:
        assert job.num_unused == {"image": 5}
    assert import_features(config)["image/clip.v0"]["bad"] == 3
    bad = {key: outcome for key, outcome in outcomes_in(config.cache).items() if outcome[0] != "ok"}
    assert bad == dict.fromkeys(keys_of(3), ("feature-missing", "no feature with this key"))
    assert verify_cache(config.cache) == []
    with pytest.raises(TooManyBadRows, match=r"3 of 8 images are bad"):
        import_features(replace(config, max_bad_fraction=0.3))


def test_features_of_other_samples_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_feature_tsv(tmp_path / "f.tsv", keys_of(5, first=100), vectors(5))
    write_image_tsv(tmp_path / "i.tsv", keys_of(5), [jpeg(9, 8, at) for at in range(5)])
    config = import_config(
        tmp_path / "cache", image_features=(str(tmp_path / "f.tsv"),), images=(str(tmp_path / "i.tsv"),)
    )
    with pytest.raises(RefusedError, match=r"not one of the 5 keys of .*i\.tsv \(such as 'k0000'\).*'k010."):
        import_features(config)
    assert not config.cache.exists()


def test_a_prefix_is_cut_off_paths_so_that_they_become_the_keys_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    paths = []
    for number in range(5):
        (folder / "a" / f"{number}.jpg").write_bytes(jpeg(9, 8, number))
        paths.append(f"/elsewhere/photos/a/{number}.jpg")
    write_clip_retrieval(tmp_path / "out", paths, paths, vectors(5), vectors(5), rows_per_partition=2)
    config = import_config(tmp_path / "cache", image_features=(str(tmp_path / "out"),), images=(str(folder),))
    with pytest.raises(RefusedError, match=r"prefix"):
        import_features(config)
    with_prefix = replace(config, image_features=(f"clip-retrieval:{tmp_path / 'out'}?prefix=/elsewhere/photos/",))
    assert import_features(with_prefix)["image/clip.v0"]["ok"] == 5
    assert Cache.open(config.cache).locations(np.array([0]))[0].digest == digest_of(jpeg(9, 8, 0))


def test_other_widths_and_formats_do_not_enter_one_array(tmp_path: Path) -> None:
    narrow = write_npy(tmp_path / "narrow.npy", keys_of(4), sentences_of(4), vectors(4, dim=8))
    wide = write_npy(tmp_path / "wide.npy", keys_of(4, 4), sentences_of(4), vectors(4, dim=16))
    table = write_parquet(tmp_path / "t.parquet", keys_of(4, 8), sentences_of(4), vectors(4))
    config = import_config(tmp_path / "cache", image_features=(str(narrow),))
    import_features(config)
    with pytest.raises(MismatchError, match=r"dim 8, .*wide\.npy has dim 16"):
        import_features(replace(config, image_features=(str(wide),)))
    with pytest.raises(MismatchError, match=r"format npy, .*t\.parquet has format parquet"):
        import_features(replace(config, image_features=(str(table),)))
    assert verify_cache(config.cache) == []


def test_features_of_another_teacher_are_refused_unless_they_are_meant_to_stand_beside(tmp_path: Path) -> None:
    keys = keys_of(6)
    write_image_tsv(tmp_path / "i.tsv", keys, [jpeg(9, 8, at) for at in range(6)])
    write_feature_tsv(tmp_path / "f.tsv", keys, vectors(6))
    write_feature_tsv(tmp_path / "g.tsv", keys[::-1], vectors(6, dim=16)[::-1])
    config = import_config(
        tmp_path / "cache", image_features=(str(tmp_path / "f.tsv"),), images=(str(tmp_path / "i.tsv"),)
    )
    import_features(config)
    other = replace(config, image_features=(str(tmp_path / "g.tsv"),), teacher_name="other")
    with pytest.raises(MismatchError, match=r"made by imported:clip .* these are imported:other .*--add-teacher"):
        import_features(other)
    summary = import_features(replace(other, add_teacher=True, images=()))
    assert summary["image/other.v0"]["ok"] == 6 and verify_cache(config.cache) == []
    array = Cache.open(config.cache).array("image", "other.v0")
    np.testing.assert_allclose(array.features.gather_unit(np.arange(6)), unit(vectors(6, dim=16)), atol=1e-3)


def test_keys_that_are_only_positions_join_nothing(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    write_feature_tsv(tmp_path / "f.tsv", ["1", "2"], vectors(2))
    with pytest.raises(UsageError, match=r"lines\.txt are only positions in it"):
        import_features(
            import_config(
                tmp_path / "cache",
                text_features=(str(tmp_path / "f.tsv"),),
                texts=(str(tmp_path / "lines.txt"),),
            )
        )


def test_sentences_elsewhere_are_joined_by_the_keys_of_a_column(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(6)[::-1], sentences_of(6), vectors(6)[::-1])
    pq.write_table(pa.table({"id": keys_of(6), "text": sentences_of(6)}), tmp_path / "t.parquet")
    config = import_config(
        tmp_path / "cache", text_features=(str(path),), texts=(f"{tmp_path / 't.parquet'}?key_column=id",)
    )
    with pytest.raises(UsageError, match=r"rows of .*f\.npy have no keys.*key_column"):
        import_features(config)
    import_features(replace(config, text_features=(f"{path}?key_column=key",)))
    cache = Cache.open(config.cache)
    assert cache.keys("text", np.arange(6)) == keys_of(6) and cache.texts(np.arange(6)) == sentences_of(6)
    np.testing.assert_allclose(cache.array("text").features.gather_unit(np.arange(6)), unit(vectors(6)), atol=1e-3)
    with pytest.raises(MismatchError, match=r"imported as npy, options \{'key_column': 'key'\}, this run says npy"):
        import_features(config)


def test_a_file_named_twice_counts_once_and_its_copy_is_refused(tmp_path: Path) -> None:
    path = write_feature_tsv(tmp_path / "f.tsv", keys_of(5), vectors(5))
    config = import_config(tmp_path / "cache", image_features=(str(path), str(path)))
    assert import_features(config)["image/clip.v0"]["rows"] == 5
    copy = write_feature_tsv(tmp_path / "copy.tsv", keys_of(5), vectors(5))
    with pytest.raises(RefusedError, match=r"copy\.tsv holds the same as .*f\.tsv"):
        import_features(replace(config, cache=tmp_path / "other", image_features=(str(path), str(copy))))
    path.unlink()
    assert import_features(replace(config, image_features=(str(copy),)))["image/clip.v0"]["rows"] == 5


def _without_rows(format_name: str, path: Path) -> Path:
    write = {"npy": write_npy, "parquet": write_parquet}[format_name]
    path = write(path, keys_of(1), sentences_of(1), vectors(1))
    table = path.with_suffix(".parquet")
    pq.write_table(pq.read_table(table).slice(0, 0), table)
    if format_name == "npy":
        np.save(path, vectors(1)[:0])
    return path


@pytest.mark.parametrize("format_name", ["npy", "parquet"])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_file_of_features_without_rows_is_skipped_among_others_and_said(
    modality: str, format_name: str, tmp_path: Path
) -> None:
    write = {"npy": write_npy, "parquet": write_parquet}[format_name]
    full = [
        write(tmp_path / f"f{number}.{format_name}", keys_of(4, number), sentences_of(4), vectors(4, seed=number))
        for number in (0, 4)
    ]
    empty = _without_rows(format_name, tmp_path / f"e.{format_name}")
    reference = import_features(
        import_config(tmp_path / "reference", **{f"{modality}_features": tuple(map(str, full))})
    )
    config = import_config(
        tmp_path / "cache", **{f"{modality}_features": (str(empty), str(full[0]), str(full[1]), str(empty))}
    )
    assert import_features(config)[f"{modality}/clip.v0"]["digest"] == reference[f"{modality}/clip.v0"]["digest"]
    with open_import(config) as job:
        assert job.tasks == [] and job.sources[modality].empty == (str(empty),)
    assert verify_cache(config.cache) == []
    # Once there is something in it, it is a new file like any other.
    write(empty, keys_of(3, 20), sentences_of(3), vectors(3, seed=9))
    assert import_features(config)[f"{modality}/clip.v0"]["rows"] == 11
    assert verify_cache(config.cache) == []


@pytest.mark.parametrize("format_name", ["npy", "parquet"])
def test_files_of_features_without_rows_alone_are_refused(format_name: str, tmp_path: Path) -> None:
    empty = _without_rows(format_name, tmp_path / f"e.{format_name}")
    config = import_config(tmp_path / "cache", image_features=(str(empty),))
    with pytest.raises(RefusedError, match=rf"no image features in {empty}: point at files that have some"):
        import_features(config)
    assert not config.cache.exists()


def test_samples_are_joined_to_the_files_of_features_that_have_rows(tmp_path: Path) -> None:
    write_image_tsv(tmp_path / "i.tsv", keys_of(6), [jpeg(9, 8, at) for at in range(6)])
    full = write_parquet(tmp_path / "f.parquet", keys_of(6), sentences_of(6), vectors(6))
    empty = _without_rows("parquet", tmp_path / "e.parquet")
    config = import_config(
        tmp_path / "cache", image_features=(str(empty), str(full)), images=(f"dime-fm:{tmp_path / 'i.tsv'}",)
    )
    assert import_features(config)["image/clip.v0"]["ok"] == 6
    assert verify_cache(config.cache) == []


def test_a_file_of_features_that_lost_all_its_rows_has_changed(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "f.parquet", keys_of(6), sentences_of(6), vectors(6))
    config = import_config(tmp_path / "cache", image_features=(str(path),))
    import_features(config)
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(MismatchError, match="changed since it was imported"):
        import_features(config)


def test_columns_without_values_need_no_type(tmp_path: Path) -> None:
    full = write_parquet(tmp_path / "f.parquet", keys_of(6), sentences_of(6), vectors(6))
    untyped = pa.array([], pa.null())
    pq.write_table(pa.table({"key": untyped, "embedding": untyped, "text": untyped}), tmp_path / "e.parquet")
    config = import_config(tmp_path / "cache", image_features=(str(full), str(tmp_path / "e.parquet")))
    assert import_features(config)["image/clip.v0"]["ok"] == 6


def test_a_file_without_rows_needs_its_columns_all_the_same(tmp_path: Path) -> None:
    full = write_parquet(tmp_path / "f.parquet", keys_of(6), sentences_of(6), vectors(6))
    for lacking in ("key", "embedding"):
        pq.write_table(pq.read_table(full).slice(0, 0).drop_columns(lacking), tmp_path / "e.parquet")
        with pytest.raises(RefusedError, match=f"no column {lacking!r}"):
            import_features(import_config(tmp_path / "cache", image_features=(str(full), str(tmp_path / "e.parquet"))))
