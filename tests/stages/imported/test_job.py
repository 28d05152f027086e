"""Features that others computed become a cache like any other: accounted for, resumable, the same however it went."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, RefusedError, TooManyBadRows, UsageError
from cache_schema.samples import digest_of
from cache_schema.verify import verify_cache
from stages.feature_files.matrix import matrix_of
from stages.files.opened import planned_file
from stages.imported.config import ImportConfig
from stages.imported.job import open_import
from tests.corpora.extracts import digests, import_config, import_features, outcomes_in
from tests.corpora.foreign_features import (
    EXAMPLES,
    keys_of,
    sentences_of,
    unit,
    vectors,
    write_clip_retrieval,
    write_feature_tsv,
    write_image_tsv,
    write_npy,
    write_parquet,
    write_text_tsv,
)
from tests.corpora.pictures import jpeg

NUM_ROWS = 13


@pytest.fixture
def dime_fm(tmp_path: Path) -> ImportConfig:
    """Features and samples as DIME-FM ships them; the features in another order than the samples."""
    keys, order = keys_of(NUM_ROWS), np.random.default_rng(0).permutation(NUM_ROWS)
    images, texts = vectors(NUM_ROWS, seed=1), vectors(NUM_ROWS, seed=2)
    shuffled = [keys[at] for at in order]
    payloads = [jpeg(9 + number, 8, number) for number in range(NUM_ROWS)]
    write_image_tsv(tmp_path / "tsv" / "image_00.tsv", keys, payloads)
    write_text_tsv(tmp_path / "tsv" / "text_00.tsv", keys, sentences_of(NUM_ROWS))
    write_feature_tsv(tmp_path / "post_proj" / "image_00.feat.tsv", shuffled, images[order])
    write_feature_tsv(tmp_path / "post_proj" / "text_00.feat.tsv", shuffled, texts[order])
    return import_config(
        tmp_path / "cache",
        image_features=(str(tmp_path / "post_proj" / "image_*.feat.tsv"),),
        text_features=(str(tmp_path / "post_proj" / "text_*.feat.tsv"),),
        images=(str(tmp_path / "tsv" / "image_00.tsv"),),
        texts=(str(tmp_path / "tsv" / "text_00.tsv"),),
    )


def test_features_and_samples_of_dime_fm_are_joined_by_their_keys(dime_fm: ImportConfig) -> None:
    summary = import_features(dime_fm)
    assert {name: (array["rows"], array["ok"], array["pending"]) for name, array in summary.items()} == {
        "image/clip.v0": (NUM_ROWS, NUM_ROWS, 0),
        "text/clip.v0": (NUM_ROWS, NUM_ROWS, 0),
    }
    assert verify_cache(dime_fm.cache) == []
    cache = Cache.open(dime_fm.cache)
    rows = np.arange(NUM_ROWS)
    for modality, seed in (("image", 1), ("text", 2)):
        array = cache.array(modality)
        assert cache.keys(modality, array.ok_rows()) == keys_of(NUM_ROWS)
        found = array.features.gather_unit(array.ok_rows())
        np.testing.assert_allclose(found, unit(vectors(NUM_ROWS, seed=seed)), atol=1e-3)
    assert cache.texts(rows) == sentences_of(NUM_ROWS)
    first = cache.locations(rows[:1])[0]
    assert (first.kind, first.width, first.height) == ("dime-fm", 9, 8)
    assert first.digest == digest_of(jpeg(9, 8, 0)) and first.size_bytes == len(jpeg(9, 8, 0))


def test_the_recipe_says_what_is_known_and_what_is_not(dime_fm: ImportConfig) -> None:
    import_features(dime_fm)
    recipe = Cache.open(dime_fm.cache).array("image").recipe
    assert recipe.teacher["kind"] == "imported" and recipe.teacher["name"] == "clip"
    assert {"weights", "preprocessing", "tokenizer", "precision", "logit scale"} <= set(recipe.teacher["unknown"])
    assert recipe.preprocess == {"unknown": True, "format": "dime-fm"} and recipe.precision == "unknown"
    assert (recipe.dim, recipe.logit_scale, recipe.specification) == (8, 100.0, "imported:clip")
    text = Cache.open(dime_fm.cache).array("text").recipe
    assert dict(text.teacher) == dict(recipe.teacher)


def test_a_logit_scale_that_is_given_is_known_and_kept_by_later_runs(dime_fm: ImportConfig, tmp_path: Path) -> None:
    images = replace(dime_fm, text_features=(), texts=(), logit_scale=42.0)
    import_features(images)
    import_features(replace(dime_fm, image_features=(), images=(), teacher_name=None))
    cache = Cache.open(dime_fm.cache)
    recipes = [cache.array(modality).recipe for modality in ("image", "text")]
    assert [recipe.logit_scale for recipe in recipes] == [42.0, 42.0]
    assert "logit scale" not in recipes[0].teacher["unknown"] and recipes[0].teacher == recipes[1].teacher
    with pytest.raises(MismatchError, match=r"logit_scale: 7\.0 now, 42\.0 then"):
        import_features(replace(images, logit_scale=7.0))


@pytest.mark.parametrize("format_name", EXAMPLES)
def test_every_format_gives_the_same_features_with_and_without_pictures(format_name: str, tmp_path: Path) -> None:
    uri = EXAMPLES[format_name](tmp_path / "features", "image", keys_of(NUM_ROWS), vectors(NUM_ROWS))
    pictures = write_image_tsv(tmp_path / "i.tsv", keys_of(NUM_ROWS), [jpeg(9, 8, n) for n in range(NUM_ROWS)])
    alone = import_config(tmp_path / "alone", image_features=(uri,))
    joined = import_config(tmp_path / "joined", image_features=(uri,), images=(f"dime-fm:{pictures}",))
    for config in (alone, joined):
        assert import_features(config)["image/clip.v0"]["ok"] == NUM_ROWS
        assert verify_cache(config.cache) == []
        array = Cache.open(config.cache).array("image")
        found = array.features.gather_unit(array.ok_rows())
        np.testing.assert_allclose(found, unit(vectors(NUM_ROWS)), atol=2e-3)
        assert Cache.open(config.cache).keys("image", array.ok_rows()) == keys_of(NUM_ROWS)


@pytest.mark.parametrize("format_name", [name for name in EXAMPLES if name != "dime-fm"])
def test_sentences_that_stand_beside_the_features_are_taken(format_name: str, tmp_path: Path) -> None:
    uri = EXAMPLES[format_name](tmp_path / "features", "text", keys_of(NUM_ROWS), vectors(NUM_ROWS))
    config = import_config(tmp_path / "cache", text_features=(uri,))
    assert import_features(config)["text/clip.v0"]["ok"] == NUM_ROWS and verify_cache(config.cache) == []
    cache = Cache.open(config.cache)
    assert cache.texts(np.arange(NUM_ROWS)) == sentences_of(NUM_ROWS)
    np.testing.assert_allclose(
        cache.array("text").features.gather_unit(np.arange(NUM_ROWS)), unit(vectors(NUM_ROWS)), atol=2e-3
    )


def test_sentences_that_stand_nowhere_are_asked_for(dime_fm: ImportConfig) -> None:
    with pytest.raises(UsageError, match=r"holds no sentences: name the source of its sentences with --texts"):
        import_features(replace(dime_fm, texts=()))
    assert not dime_fm.cache.exists()


def test_an_import_that_stopped_resumes_to_the_same_digest_and_a_rerun_does_nothing(dime_fm: ImportConfig) -> None:
    whole = digests(import_features(dime_fm))
    again = replace(dime_fm, cache=dime_fm.cache.with_name("again"))
    import_features(again, only=3)
    with open_import(again) as job:
        assert len(job.tasks) == 8 - 3
    # What was asked is remembered: the rest needs no more than the cache.
    assert digests(import_features(import_config(again.cache, teacher_name=None, part_rows=None))) == whole
    with open_import(again) as job:
        assert job.tasks == []


def test_a_crash_before_the_recipe_knew_the_new_files_is_mended_by_the_same_command(dime_fm: ImportConfig) -> None:
    whole = digests(import_features(dime_fm))
    again = replace(dime_fm, cache=dime_fm.cache.with_name("again"))
    import_features(again, only=0)
    for modality in ("image", "text"):
        (again.cache / modality / "arrays" / "clip.v0" / "recipe.json").unlink()
    assert digests(import_features(again)) == whole


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


def test_other_numbers_of_rows_in_a_pair_are_refused_with_both_numbers(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(6), sentences_of(6), vectors(6))
    pq.write_table(pa.table({"key": keys_of(5)}), path.with_suffix(".parquet"))
    with pytest.raises(MismatchError, match=r"f\.npy has 6 rows, .*f\.parquet has 5"):
        import_features(import_config(tmp_path / "cache", image_features=(str(path),)))


NPY_FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "objects": (lambda a: a.astype(object), "Python objects"),
    "Fortran order": (np.asfortranarray, "Fortran order"),
    "big-endian": (lambda a: a.astype(">f4"), "not little-endian"),
    "integers": (lambda a: a.astype(np.int32), "not little-endian"),
    "complex": (lambda a: a.astype(np.complex64), "not little-endian"),
    "one axis": (lambda a: a[0], "has shape"),
    "three axes": (lambda a: a[:, :, None], "has shape"),
    "no rows": (lambda a: a[:0], "has shape"),
    "no width": (lambda a: a[:, :0], "has shape"),
    "named fields": (lambda a: np.zeros(6, [("x", "<f4")]), "not little-endian"),
}


@pytest.mark.parametrize("fault", NPY_FAULTS)
def test_a_matrix_of_another_kind_is_refused_by_its_header(fault: str, tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(6), sentences_of(6), vectors(6))
    make, words = NPY_FAULTS[fault]
    np.save(path, make(vectors(6)), allow_pickle=True)
    with pytest.raises(RefusedError, match=words):
        import_features(import_config(tmp_path / "cache", image_features=(str(path),)))
    assert not (tmp_path / "cache").exists()


def test_a_header_that_claims_a_terabyte_is_refused_without_allocating_it(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(6), sentences_of(6), vectors(6))
    claim = b"(99999999999, 8), }"
    path.write_bytes(path.read_bytes().replace(b"(6, 8), }" + b" " * 10, claim))
    with pytest.raises(DamagedError, match=r"its header .* needs .*: it is cut or damaged"):
        import_features(import_config(tmp_path / "cache", image_features=(str(path),)))


def test_a_header_with_any_byte_changed_is_refused_or_means_the_same(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f.npy", keys_of(6), sentences_of(6), vectors(6))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for at in range(128):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            with planned_file(str(path)) as file:
                matrix = matrix_of(str(path), file)
            assert (matrix.num_rows * matrix.dim, matrix.dtype.itemsize) == (48, 4)
        except RefusedError:
            refused += 1
    assert refused > 60


def test_values_that_cannot_be_features_keep_their_rows_with_a_status(tmp_path: Path) -> None:
    features = vectors(8)
    features[1, 3], features[2, 0], features[3] = np.nan, np.inf, 0
    features[4] = 3e38
    path = write_npy(tmp_path / "f.npy", keys_of(8), sentences_of(8), features)
    assert import_features(import_config(tmp_path / "cache", image_features=(str(path),)))["image/clip.v0"]["bad"] == 3
    bad = {key: status for key, (status, _) in outcomes_in(tmp_path / "cache").items() if status != "ok"}
    assert bad == {"k0001": "feature-not-finite", "k0002": "feature-not-finite", "k0003": "feature-zero-norm"}
    assert verify_cache(tmp_path / "cache") == []


@pytest.mark.parametrize("joined", [False, True], ids=["alone", "with pictures"])
def test_lines_that_hold_no_feature_keep_their_rows_with_a_status(joined: bool, tmp_path: Path) -> None:
    path = write_feature_tsv(tmp_path / "f.tsv", keys_of(8), vectors(8))
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:-1]
    lines[2] = "k0002"
    lines[3] = lines[3].split("\t")[0] + "\tAAAA"
    lines[4] = write_feature_tsv(tmp_path / "g.tsv", ["k0004"], vectors(1, dim=16)).read_text().strip()
    path.write_text("\n".join(lines) + "\n")
    write_image_tsv(tmp_path / "i.tsv", keys_of(8), [jpeg(9, 8, at) for at in range(8)])
    images = (str(tmp_path / "i.tsv"),) if joined else ()
    import_features(import_config(tmp_path / "cache", image_features=(str(path),), images=images))
    bad = {key: outcome for key, outcome in outcomes_in(tmp_path / "cache").items() if outcome[0] != "ok"}
    assert bad == {
        "k0001": ("feature-encoding", "not base64"),
        "k0002": ("feature-encoding", "no second column"),
        "k0003": ("feature-encoding", "not float32"),
        "k0004": ("feature-wrong-width", "16 values"),
    }
    assert verify_cache(tmp_path / "cache") == []


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


def test_bad_pictures_stay_bad_although_they_have_a_feature(tmp_path: Path) -> None:
    payloads = [jpeg(9, 8, at) for at in range(5)]
    payloads[1], payloads[2], payloads[3] = b"", payloads[2][:60], b"<html>"
    write_image_tsv(tmp_path / "i.tsv", keys_of(5), payloads)
    write_feature_tsv(tmp_path / "f.tsv", keys_of(5), vectors(5))
    config = import_config(
        tmp_path / "cache", image_features=(str(tmp_path / "f.tsv"),), images=(str(tmp_path / "i.tsv"),)
    )
    import_features(config)
    statuses = [status for status, _ in outcomes_in(config.cache).values()]
    assert statuses == ["ok", "img-empty", "img-truncated", "img-unknown-format", "ok"]
    assert verify_cache(config.cache) == []


def test_a_file_that_changes_between_planning_and_reading_is_refused(dime_fm: ImportConfig, tmp_path: Path) -> None:
    path = tmp_path / "post_proj" / "image_00.feat.tsv"
    with open_import(dime_fm) as job, job.make_worker() as importer:
        importer(job.tasks[0])
        os.utime(path, ns=(1, 1))
        with pytest.raises(MismatchError, match=r"image_00\.feat\.tsv changed since it was planned"):
            importer(job.tasks[1])
    # The same content under another time is the same file, other content is not.
    import_features(dime_fm, only=1)
    write_feature_tsv(path, keys_of(NUM_ROWS), vectors(NUM_ROWS, seed=9))
    with pytest.raises(MismatchError, match=r"image_00\.feat\.tsv changed since it was imported"):
        import_features(dime_fm)


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


def test_nothing_secret_or_absolute_enters_the_digest(dime_fm: ImportConfig, tmp_path: Path) -> None:
    before = digests(import_features(dime_fm))
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("tsv", "post_proj"):
        (tmp_path / name).rename(moved / name)
    there = {
        field: tuple(uri.replace(str(tmp_path), str(moved)) for uri in getattr(dime_fm, field))
        for field in ("image_features", "text_features", "images", "texts")
    }
    assert digests(import_features(replace(dime_fm, cache=tmp_path / "again", **there))) == before
    # In the first cache the files are known again by their content, wherever they lie now.
    with open_import(replace(dime_fm, **there)) as job:
        assert job.tasks == []
    files = json.loads((dime_fm.cache / "image" / "arrays" / "clip.v0" / "recipe.json").read_text())["files"]
    assert list(files) == [str(moved / "post_proj" / "image_00.feat.tsv")]
