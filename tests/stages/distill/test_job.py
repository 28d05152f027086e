"""The record of a run says what was asked, whose names stand for what, and on what it was computed."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from cache_schema.cache import Cache
from stages.distill.config import Running
from stages.distill.job import DistillJob
from stages.distill.resolve import open_job
from stages.settings.declare import settings_in
from tests.corpora.by_hand import select
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import small_cache
from tests.corpora.stub_teacher import STUB, STUB_ARRAY


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def job(cache: Cache) -> DistillJob:
    sizes = {"steps": 4, "batch_size": 8, "text_batch_size": 12, "weights": {"vl": 0.0, "feature": 2.0}}
    return open_job(distill_config(cache.path, Path("run"), student="timm:test_vit?image_size=32", **sizes))


def test_a_new_record_has_no_result_and_names_cache_arrays_and_teacher(job: DistillJob, cache: Cache) -> None:
    record = job.new_record()
    about = record.about
    assert record.result is None and about["sessions"] == []
    assert about["cache"] == str(cache.path)
    assert (about["image_array"], about["text_array"], about["views"]) == (*(f"{STUB_ARRAY}.v0",) * 2, [])
    assert (about["image_selection"], about["text_selection"], about["from"]) == (None, None, None)
    assert about["negatives"] == "random"
    assert (about["teacher"]["specification"], about["teacher"]["logit_scale"]) == (STUB, 100.0)
    assert about["teacher"]["identity"]["version"] == "1"
    assert about["numerics"].keys() == {"image", "text"}


def test_the_whole_method_is_recorded_and_nothing_of_how_it_runs(job: DistillJob) -> None:
    asked = job.new_record().asked
    assert asked["weights"] == {"vl": 0.0, "pvl": 0.3, "udist": 0.0, "feature": 2.0}
    assert asked["temperatures"] == {"vl": 1.0, "pvl": 3.0, "udist": 7.0}
    assert (asked["mined_share"], asked["clip_grad"], asked["skip_nonfinite"], asked["ema"]) == (0.5, 0.0, 0, 0.0)
    assert not asked.keys() & settings_in(Running).keys()


def test_names_are_recorded_by_what_they_stand_for(job: DistillJob, cache: Cache) -> None:
    asked = job.new_record().asked
    for modality, field in (("image", "images"), ("text", "texts")):
        array = cache.array(modality)
        assert asked[field] == {"fingerprint": array.recipe.fingerprint, "digest": array.digest()}
    assert asked["student"] == job.student.description.to_json()
    assert (asked["from"], asked["image_selection"], asked["text_selection"], asked["negatives"]) == (None,) * 4
    assert asked["pictures"] == "in memory" and not {"views", "pixels"} & asked.keys()


def test_pictures_in_memory_and_streamed_are_different_runs(job: DistillJob) -> None:
    streamed = replace(job, feed=replace(job.feed, in_memory=False)).new_record()
    assert streamed.asked["pictures"] == "streamed"
    assert streamed.fingerprint != job.new_record().fingerprint


def test_a_selection_is_recorded_by_its_rows_and_not_by_its_name(job: DistillJob, cache: Cache) -> None:
    one, same, other = (select(cache, name, rows) for name, rows in (("a", [1, 2]), ("b", [1, 2]), ("c", [1, 3])))
    prints = [
        replace(job, feed=replace(job.feed, image_selection=rows)).new_record().fingerprint
        for rows in (None, one, same, other)
    ]
    assert replace(job, feed=replace(job.feed, image_selection=one)).new_record().asked["image_selection"] == one.digest
    assert prints[1] == prints[2]
    assert len({prints[0], prints[1], prints[3]}) == 3


def test_where_it_started_is_asked_by_its_weights_and_told_by_its_path(job: DistillJob) -> None:
    later = replace(job, start_sha256="ab" * 32).new_record()
    assert later.asked["from"] == "ab" * 32 and later.fingerprint != job.new_record().fingerprint


def test_a_session_says_where_it_computes_and_with_which_tools(job: DistillJob) -> None:
    session = job.session(7, 4)
    assert (session["first_step"], session["device"], session["num_threads"]) == (7, "cpu", torch.get_num_threads())
    tools = ("torch", "open_clip_torch", "timm", "numpy", "pillow")
    assert session["tools"] == {name: version(name) for name in tools}
