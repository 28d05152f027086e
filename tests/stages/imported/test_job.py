"""Features that others computed become a cache like any other: accounted for, resumable, the same however it went."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError, UsageError
from cache_schema.samples import digest_of
from cache_schema.verify import verify_cache
from stages.imported.config import ImportConfig
from stages.imported.job import open_import
from tests.corpora.extracts import digests, import_config, import_features, outcomes_in
from tests.corpora.foreign_features import (
    EXAMPLES,
    keys_of,
    sentences_of,
    unit,
    vectors,
    write_feature_tsv,
    write_image_tsv,
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
