"""What comes after an import: real teachers beside it, distillation, evaluation; what is unknown is said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError, UnfinishedError, UsageError
from cache_schema.repair import withdraw
from cache_schema.verify import verify_cache
from stages.distill.config import DistillConfig
from stages.distill.run import distill
from stages.evaluate.models import load_model
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.imported.config import ImportConfig
from stages.imported.job import open_import
from stages.teachers import load_teacher
from tests.corpora.extracts import digests, extract, extract_config, extracted_cache, import_config, import_features
from tests.corpora.foreign_features import (
    keys_of,
    sentences_of,
    unit,
    vectors,
    write_feature_tsv,
    write_image_tsv,
    write_npy,
    write_text_tsv,
)
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import write_sources
from tests.corpora.stub_teacher import STUB, stub

NUM_ROWS = 16
DIM = 16


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> ImportConfig:
    """A cache of imported features with pictures and sentences, not to be changed."""
    folder = tmp_path_factory.mktemp("imported")
    pictures, _ = write_sources(folder / "corpus", num_images=NUM_ROWS, num_texts=1)
    keys = keys_of(NUM_ROWS)
    payloads = [path.read_bytes() for path in sorted(pictures.iterdir())]
    write_image_tsv(folder / "i.tsv", keys, payloads)
    write_text_tsv(folder / "t.tsv", keys, sentences_of(NUM_ROWS))
    write_feature_tsv(folder / "i.feat.tsv", keys, vectors(NUM_ROWS, DIM, seed=1))
    write_feature_tsv(folder / "t.feat.tsv", keys, vectors(NUM_ROWS, DIM, seed=2))
    config = import_config(
        folder / "cache",
        image_features=(str(folder / "i.feat.tsv"),),
        text_features=(str(folder / "t.feat.tsv"),),
        images=(str(folder / "i.tsv"),),
        texts=(str(folder / "t.tsv"),),
    )
    import_features(config)
    return config


@pytest.fixture
def alone(tmp_path: Path) -> ImportConfig:
    """A cache of features without pictures."""
    path = write_npy(tmp_path / "f.npy", keys_of(NUM_ROWS), sentences_of(NUM_ROWS), vectors(NUM_ROWS, DIM))
    config = import_config(tmp_path / "alone", image_features=(str(path),), text_features=(str(path),))
    import_features(config)
    return config


def a_few_steps(cache: Path, out: Path) -> DistillConfig:
    return distill_config(cache, out, steps=2, batch_size=4, text_batch_size=4)


def test_a_student_learns_from_imported_features_and_evaluate_asks_whose_they_are(
    imported: ImportConfig, tmp_path: Path
) -> None:
    result = distill(a_few_steps(imported.cache, tmp_path / "run"))
    assert result["steps"] == 2 and result["has_text_tower"] is False
    run_name = str(tmp_path / "run")
    with pytest.raises(UsageError, match=r"learnt from features that were imported \(imported:clip\).*--teacher"):
        load_model(run_name, device="cpu")
    trusted = load_model(run_name, device="cpu", teacher=STUB)
    assert trusted.texts.specification == STUB and trusted.learnt_from is None
    with pytest.raises(MismatchError, match=r"width 8, .* ones of width 16"):
        load_model(run_name, device="cpu", teacher=stub(dim=8))


def test_features_without_pictures_cannot_be_distilled_and_say_what_to_do(alone: ImportConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"16 images of .*alone were imported as features without pictures .*--images"):
        distill(a_few_steps(alone.cache, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_features_without_pictures_and_pictures_do_not_mix(
    alone: ImportConfig, imported: ImportConfig, tmp_path: Path
) -> None:
    keys = keys_of(4, first=100)
    more = write_feature_tsv(tmp_path / "more.feat.tsv", keys, vectors(4, DIM))
    with pytest.raises(UsageError, match=r"have pictures, .*more\.feat\.tsv comes without"):
        import_features(replace(imported, image_features=(str(more),), images=(), text_features=(), texts=()))
    pictures, _ = write_sources(tmp_path / "corpus", num_images=4, num_texts=1)
    features = write_npy(tmp_path / "g.npy", [p.name for p in sorted(pictures.iterdir())], keys, vectors(4, DIM))
    with pytest.raises(UsageError, match="without pictures"):
        import_features(replace(alone, image_features=(str(features),), images=(str(pictures),), text_features=()))
    with (
        pytest.raises(UsageError, match="there is nothing to look at"),
        open_job(ExtractConfig(cache=alone.cache, teacher=STUB, add_teacher=True, decode_workers=0)),
    ):
        pass


def test_an_imported_teacher_cannot_encode_and_says_so(imported: ImportConfig) -> None:
    with pytest.raises(UsageError, match=r"teacher 'clip' is known only by features .* --teacher"):
        load_teacher("imported:clip")
    with pytest.raises(UsageError, match="is known only by features"), open_job(ExtractConfig(cache=imported.cache)):
        pass
    with (
        pytest.raises(MismatchError, match=r"made by imported:clip"),
        open_job(ExtractConfig(cache=imported.cache, teacher=STUB)),
    ):
        pass


def test_a_real_teacher_stands_beside_imported_features_over_the_same_rows(
    imported: ImportConfig, tmp_path: Path
) -> None:
    config = replace(imported, cache=tmp_path / "cache")
    before = digests(import_features(config))
    real = extract_config(config.cache, add_teacher=True, part_rows=None)
    extract(real)
    assert verify_cache(config.cache) == []
    cache = Cache.open(config.cache)
    assert len(cache.arrays("image")) == 2 and cache.array("image", "clip.v0").digest() == before["image/clip.v0"]
    with open_job(replace(real, teacher=None, add_teacher=False)) as job:
        assert job.tasks == []


def test_imported_features_stand_beside_a_real_teacher_over_the_same_rows(tmp_path: Path) -> None:
    pictures, sentences = write_sources(tmp_path, num_images=20, num_texts=5)
    cache = extracted_cache(tmp_path / "cache", pictures, sentences)
    keys = cache.keys("image", np.arange(20))
    path = write_npy(tmp_path / "f.npy", keys[::-1], keys, vectors(20, DIM)[::-1])
    config = import_config(cache.path, image_features=(str(path),), part_rows=None)
    with pytest.raises(UsageError, match=r"--add-teacher"):
        import_features(config)
    assert import_features(replace(config, add_teacher=True))["image/clip.v0"]["ok"] == 20
    array = Cache.open(cache.path).array("image", "clip.v0")
    np.testing.assert_allclose(array.features.gather_unit(np.arange(20)), unit(vectors(20, DIM)), atol=1e-3)
    assert verify_cache(cache.path) == []


def test_an_unfinished_import_names_the_command_that_finishes_it(imported: ImportConfig, tmp_path: Path) -> None:
    config = replace(imported, cache=tmp_path / "cache")
    import_features(config, only=1)
    with pytest.raises(UnfinishedError, match=r"1 of 4 parts .* run `pipeline import` again"):
        Cache.open(config.cache).array("image").require_complete()


def test_damaged_parts_are_imported_again_from_the_files_that_the_cache_remembers(
    imported: ImportConfig, tmp_path: Path
) -> None:
    config = replace(imported, cache=tmp_path / "cache")
    before = digests(import_features(config))
    shard = config.cache / "image" / "features.zarr" / "clip.v0" / "c" / "2" / "0"
    shard.write_bytes(shard.read_bytes()[:-7])
    cache = Cache.open(config.cache)
    assert [part.part for part in withdraw(cache, verify_cache(config.cache))] == [2]
    again = import_config(config.cache, teacher_name=None, part_rows=None)
    with open_import(again) as job:
        assert [task.part.number for task in job.tasks] == [2]
    assert digests(import_features(again)) == before and verify_cache(config.cache) == []
