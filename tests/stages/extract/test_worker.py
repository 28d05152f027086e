"""Parts of one array share one kind of arithmetic, unless somebody allows otherwise, which is then on record."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache_schema import atomic
from cache_schema.cache import Cache
from cache_schema.errors import MismatchError
from cache_schema.json_file import read_sealed, seal
from cache_schema.records import parts_by_numerics
from cache_schema.summary import summary_of
from cache_schema.verify import verify_cache
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from stages.teachers.arithmetic import numerics_of
from tests.corpora.extracts import extract, extract_config
from tests.corpora.small_corpus import write_sentences

OTHER = "cuda NVIDIA H200 torch 2.15"


@pytest.fixture
def config(tmp_path: Path) -> ExtractConfig:
    """An extract of five parts, of which two are committed."""
    config = extract_config(tmp_path / "cache", texts=write_sentences(tmp_path / "sentences.txt", 80))
    extract(config, only=2)
    return config


def computed_elsewhere(config: ExtractConfig, numerics: str) -> None:
    """Writes into every record that its part was computed on `numerics`."""
    for path in config.cache.glob("text/arrays/*/records/*.json"):
        atomic.publish_json(path, seal({**read_sealed(path), "numerics": numerics}))


def numerics_in(config: ExtractConfig) -> dict[str, int]:
    return parts_by_numerics(Cache.open(config.cache).array("text").records())


def test_a_cache_that_knows_the_device_alone_can_be_extended(config: ExtractConfig) -> None:
    computed_elsewhere(config, "cpu")
    extract(config)
    assert sum(numerics_in(config).values()) == 5
    assert verify_cache(config.cache) == []


def test_parts_of_another_kind_are_refused_with_both_and_the_way_out(config: ExtractConfig) -> None:
    computed_elsewhere(config, OTHER)
    with pytest.raises(MismatchError, match=rf"were computed on {OTHER}, this worker .*on cpu.*--allow-mixed-numerics"):
        extract(config)
    assert numerics_in(config) == {OTHER: 2}


def test_a_single_part_of_another_kind_is_enough_to_refuse(config: ExtractConfig) -> None:
    (last,) = config.cache.glob("text/arrays/*/records/00001.json")
    atomic.publish_json(last, seal({**read_sealed(last), "numerics": OTHER}))
    with pytest.raises(MismatchError, match=OTHER):
        extract(config)


def test_what_was_allowed_is_on_record_and_what_was_not_is_not(config: ExtractConfig) -> None:
    for path in config.cache.glob("text/arrays/*/records/*.json"):
        assert "allow_mixed_numerics" not in read_sealed(path)
    computed_elsewhere(config, OTHER)
    extract(replace(config, allow_mixed_numerics=True))
    cache = Cache.open(config.cache)
    records = cache.array("text").records()
    assert [record.allow_mixed_numerics for record in records] == [False, False, True, True, True]
    (array,) = summary_of(cache)["arrays"].values()
    assert array["numerics"] == {numerics_of("cpu"): 3, OTHER: 2}
    assert array["mixed_numerics_allowed"] == 3
    assert verify_cache(config.cache) == []


def test_workers_of_one_run_need_not_be_of_one_kind_when_that_is_allowed(config: ExtractConfig) -> None:
    for allowed in (False, True):
        with open_job(replace(config, allow_mixed_numerics=allowed)) as job, job.make_worker() as worker:
            assert worker.kind == ("any" if allowed else numerics_of("cpu"))


def test_a_look_at_some_rows_commits_nothing(config: ExtractConfig) -> None:
    with open_job(config) as job, job.make_worker() as worker:
        before = sorted(config.cache.rglob("*"))
        worker(replace(job.tasks[0], may_kill=True, only=range(3, 9)))
        assert sorted(config.cache.rglob("*")) == before


def test_rows_of_which_workers_die_have_a_status_and_no_feature_and_the_others_the_same_bits(
    config: ExtractConfig, tmp_path: Path
) -> None:
    other = replace(config, cache=tmp_path / "other")
    extract(other)
    with open_job(config) as job, job.make_worker() as worker:
        assert worker(replace(job.tasks[0], fatal={4: "SIGSEGV", 15: "exit code 3"})).num_bad == 2
    array = Cache.open(config.cache).array("text")
    bad = {row: said for row, (_, _, *said) in enumerate(array.outcome(2)) if said[0] != "ok"}
    assert bad == {4: ["worker-died", "SIGSEGV"], 15: ["worker-died", "exit code 3"]}
    seen, undisturbed = features_of(config.cache)[32:48], features_of(other.cache)[32:48]
    kept = [row for row in range(16) if row not in bad]
    assert np.array_equal(seen[kept], undisturbed[kept]) and np.isnan(seen[list(bad)]).all()
    assert verify_cache(config.cache) == []


def test_what_was_committed_before_a_worker_died_is_not_done_again(config: ExtractConfig) -> None:
    with open_job(config) as job, job.make_worker() as worker:
        worker(job.tasks[0])
        (record,) = config.cache.glob("text/arrays/*/records/00002.json")
        before = record.read_bytes()
        worker(replace(job.tasks[0], fatal={4: "SIGSEGV"}))
    assert record.read_bytes() == before


def features_of(cache: Path) -> np.ndarray:
    """Returns the features of the sentences, as zarr reads them."""
    (array,) = zarr.open_group(cache / "text" / "features.zarr", mode="r").array_values()
    values: np.ndarray = array[:]
    return values
