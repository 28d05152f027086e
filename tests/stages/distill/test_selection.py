"""Training on a selection sees its rows and no others, and a run belongs to the selection that it began with."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.cache import Cache
from cache_schema.errors import DamagedError, MismatchError, UsageError
from stages.distill.config import DistillConfig
from stages.distill.resolve import open_job
from stages.distill.run import TrainingStopped, distill
from stages.runs.folder import RunFolder
from stages.runs.record import read_record
from stages.search.dedup import dedup
from tests.corpora.by_hand import select
from tests.corpora.extracts import extracted_cache
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import write_sources


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """24 pictures, of which 8 repeat others, one that cannot be read, and 30 sentences, of which 10 repeat others."""
    pictures, sentences = write_sources(tmp_path, num_images=16, num_texts=20)
    for number in range(16, 24):
        (pictures / f"{number:04d}.png").write_bytes((pictures / f"{number - 16:04d}.png").read_bytes())
    (pictures / "0015.png").write_bytes(b"")
    lines = sentences.read_text().splitlines()
    sentences.write_text("\n".join([*lines, *lines[:10]]) + "\n")
    cache = extracted_cache(tmp_path / "cache", pictures, sentences)
    dedup(cache, modality="image", name="pictures")
    dedup(cache, modality="text", name="sentences")
    return cache


@pytest.fixture
def config(cache: Cache, tmp_path: Path) -> DistillConfig:
    return distill_config(cache.path, tmp_path / "run", images="pictures", texts="sentences", steps=2)


def test_the_rows_of_a_run_are_the_ok_rows_of_its_selections(config: DistillConfig) -> None:
    job = open_job(replace(config, steps=None))
    assert job.feed.sequence.rows.tolist() == list(range(15)) and job.method.batch_size == 15
    assert job.feed.text_rows.tolist() == list(range(20)) and job.method.text_batch_size == 20
    assert job.method.steps == 100


def test_a_run_trains_on_its_selection_and_its_record_says_which(config: DistillConfig, cache: Cache) -> None:
    said: list[str] = []
    distill(config, notice=said.append)
    assert "15 ok images of the selection 'pictures' and 20 ok sentences of the selection 'sentences'" in said[0]
    record = read_record(RunFolder(config.out))
    assert record.about["image_selection"] == "pictures" and record.about["text_selection"] == "sentences"
    assert record.asked["image_selection"] and record.asked["text_selection"]
    assert record.asked["batch_size"] == 15 and record.asked["text_batch_size"] == 20


def test_a_run_is_not_resumed_with_another_selection(config: DistillConfig, cache: Cache) -> None:
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=lambda: True)
    select(cache, "fewer", list(range(12)))
    for other in ("fewer", None):
        with pytest.raises(MismatchError, match="image_selection: "):
            distill(replace(config, images=other, batch_size=12))
    select(cache, "same-rows", list(range(15)))
    with pytest.raises(TrainingStopped):
        distill(replace(config, images="same-rows"), should_stop=lambda: True)


def test_bad_rows_of_a_selection_are_left_out(config: DistillConfig, cache: Cache) -> None:
    select(cache, "with-bad", [3, 15, 20])
    assert open_job(replace(config, images="with-bad")).feed.sequence.rows.tolist() == [3, 20]


def test_a_batch_that_the_selection_cannot_fill_is_refused_with_both_numbers(
    config: DistillConfig, cache: Cache
) -> None:
    with pytest.raises(UsageError, match=r"batch of 16 images does not fit selection 'pictures', which has 15 of"):
        open_job(replace(config, batch_size=16))
    with pytest.raises(UsageError, match=r"batch of 21 texts does not fit selection 'sentences', which has 20 of"):
        open_job(replace(config, text_batch_size=21))
    select(cache, "none", [15])
    with pytest.raises(UsageError, match="has 0 of the 23 ok images: name another selection"):
        open_job(replace(config, images="none"))


def test_a_selection_of_the_other_modality_or_of_no_name_is_refused(config: DistillConfig) -> None:
    with pytest.raises(UsageError, match=r"'sentences' .* is of text rows, --images needs image rows"):
        open_job(replace(config, images="sentences"))
    with pytest.raises(UsageError, match="did you mean 'pictures'"):
        open_job(replace(config, images="picture"))


def test_a_damaged_selection_is_refused_before_anything_is_written(config: DistillConfig, cache: Cache) -> None:
    cache.layout.selection("pictures").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"pictures\.parquet"):
        distill(config)
    assert not config.out.exists()
