"""A teacher that goes wrong, at the start or under way, leaves nothing that it made since its last good probe."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.cache import Cache
from cache_schema.errors import DriftedError, MismatchError, RefusedError
from cache_schema.verify import verify_cache
from pipeline.executors.serial import SerialExecutor
from pipeline.parts import run_parts
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.teachers.described import _LOADED
from tests.corpora.extracts import digests_of, extract, extract_config
from tests.corpora.small_corpus import write_sources
from tests.corpora.stub_teacher import STUB
from tests.corpora.wrong_teachers import wrong


@pytest.fixture
def config(tmp_path: Path) -> ExtractConfig:
    """An extract of two parts of pictures and six of sentences."""
    _LOADED.clear()  # A teacher that counts its batches must not be the one of an earlier test.
    return extract_config(tmp_path / "cache", *write_sources(tmp_path, num_images=32, num_texts=96), batch_size=16)


def num_committed(config: ExtractConfig) -> int:
    return len(list(config.cache.glob("*/arrays/*/records/*.json")))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 12, 16, 64])
@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("fault", ["mean_of_batch", "neighbour", "shifted"])
def test_features_that_depend_on_their_batch_are_refused_before_anything_is_committed(
    config: ExtractConfig, fault: str, modality: str, batch_size: int
) -> None:
    asked = replace(config, part_rows=64, batch_size=batch_size, teacher=wrong(fault, modality=modality))
    if fault == "shifted" and batch_size == 1:
        pytest.skip("a single row has nowhere to go")
    with pytest.raises(
        RefusedError, match=f"probe {modality} .*(another feature at place|usable)|usable .* {modality}"
    ):
        extract(asked)
    assert not num_committed(config)


def test_features_that_depend_on_the_longest_sentence_beside_them_are_refused(config: ExtractConfig) -> None:
    with pytest.raises(MismatchError, match="let no feature depend on what else is in the batch"):
        extract(replace(config, teacher=wrong("longest_sentence")))
    assert not num_committed(config)


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("fault", ["constant", "nearly_constant"])
def test_one_feature_for_all_is_refused_and_leaves_no_cache(config: ExtractConfig, fault: str, modality: str) -> None:
    with pytest.raises(RefusedError, match=f"16 of the 16 different probe {modality}s one and the same feature"):
        extract(replace(config, teacher=wrong(fault, modality=modality)))
    assert not config.cache.exists()


def test_a_modality_that_nobody_asks_for_may_have_one_feature(config: ExtractConfig) -> None:
    extract(replace(config, texts=(), teacher=wrong("constant", modality="text")))
    assert num_committed(config) == 2


@pytest.mark.parametrize("after", range(5, 14))
def test_a_drift_under_way_ends_the_run_and_nothing_made_since_the_last_good_probe_is_committed(
    config: ExtractConfig, after: int, tmp_path: Path
) -> None:
    reference = replace(config, cache=tmp_path / "reference", images=(), teacher=STUB)
    extract(reference)
    drifting = replace(config, images=(), teacher=wrong("drift", after=after))
    with open_job(drifting) as job, pytest.raises(DriftedError, match="is not committed and stays pending") as ended:
        run_parts(job, SerialExecutor(), lambda *_: None)
    assert ended.value.exit_code == 4
    # Four batches are probes of the driver and of the worker's admission; then come one and its probe for every part.
    assert num_committed(config) == (after - 4) // 2
    assert verify_cache(config.cache) == []
    _LOADED.clear()
    extract(replace(drifting, teacher=wrong("drift", after=10**6)))
    assert [*digests_of(config.cache).values()] == [*digests_of(reference.cache).values()]


def test_a_teacher_of_equal_identity_that_encodes_pictures_otherwise_adds_no_sentences(config: ExtractConfig) -> None:
    extract(replace(config, texts=()))
    pictures_alone = sorted(config.cache.rglob("*"))
    with pytest.raises(MismatchError, match=r"does not reproduce probe image \d+ of .*probes\.npz"):
        extract(replace(config, images=(), teacher=f"{STUB}&seed=1"))
    assert [path for path in sorted(config.cache.rglob("*")) if path.name != "lock.json"] == pictures_alone
    extract(replace(config, images=()))
    assert len(Cache.open(config.cache).array("text").committed) == 6


def test_a_mean_and_std_of_another_scale_are_refused_before_anything_is_written(config: ExtractConfig) -> None:
    with pytest.raises(RefusedError, match="are on another scale than colours of 0 to 1"):
        extract(replace(config, teacher=f"{STUB}&mean=123.675&std=58.395"))
    assert not config.cache.exists()


def test_a_rerun_with_nothing_pending_asks_for_no_probe(config: ExtractConfig, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    extract(replace(config, teacher=f"{STUB}&calls={calls}"))
    calls.unlink()
    extract(replace(config, teacher=f"{STUB}&calls={calls}"))
    assert not calls.exists()
