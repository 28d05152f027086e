"""An extract says what is done and what is missing, and doing it again gives the same cache."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError, RefusedError, TooManyBadRows, UsageError
from cache_schema.verify import verify_cache
from stages.extract.config import ExtractConfig
from stages.extract.job import open_job
from tests.corpora.extracts import digests, extract, extract_config, outcomes_in
from tests.corpora.pictures import encoded, noise, write_pictures
from tests.corpora.processes import ROOT
from tests.corpora.small_corpus import write_sentences
from tests.corpora.stub_teacher import STUB, stub

SIZES = [(61, 44), (33, 80), (24, 24), (89, 20)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 pictures, of which one is empty and one is cut, and 100 sentences, one of them empty."""
    folder = tmp_path_factory.mktemp("data")
    bad = {10: b"", 20: encoded(noise(50, 50), "PNG")[:200]}
    write_pictures(folder / "pictures", 40, sizes=SIZES, bad=bad)
    write_sentences(folder / "sentences.txt", 100, empty=[7])
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> ExtractConfig:
    return extract_config(tmp_path / "cache", data / "pictures", data / "sentences.txt", decode_workers=1)


def test_every_planned_row_is_accounted_for_and_the_cache_verifies(config: ExtractConfig) -> None:
    summary = extract(config)
    counts = {array["modality"]: (array["rows"], array["ok"], array["bad"]) for array in summary.values()}
    assert counts == {"image": (40, 38, 2), "text": (100, 99, 1)}
    assert verify_cache(config.cache) == []
    statuses = {status for status, _ in outcomes_in(config.cache).values()}
    assert statuses == {"ok", "img-empty", "img-truncated"}


def test_an_interrupted_extract_resumes_to_the_same_digest(config: ExtractConfig) -> None:
    whole = digests(extract(config))
    again = replace(config, cache=config.cache.with_name("again"))
    extract(again, only=4)
    with open_job(again) as job:
        assert len(job.tasks) == 3 + 7 - 4
    assert digests(extract(again)) == whole


@pytest.mark.parametrize("change", [{"part_rows": 32}, {"decode_workers": 0}, {"batch_size": 7}])
def test_the_digest_does_not_depend_on_parts_batches_or_decode_processes(config: ExtractConfig, change: dict) -> None:
    other = replace(config, cache=config.cache.with_name("other"), **change)
    assert digests(extract(config)) == digests(extract(other))


def test_a_cache_grown_in_two_steps_has_the_digest_of_one_made_at_once(config: ExtractConfig, data: Path) -> None:
    lines = (data / "sentences.txt").read_text().splitlines(keepends=True)
    halves = [config.cache.parent / name for name in ("a.txt", "b.txt")]
    halves[0].write_text("".join(lines[:37]))
    halves[1].write_text("".join(lines[37:]))
    both = tuple(map(str, halves))
    at_once = digests(extract(replace(config, images=(), texts=both)))
    grown = replace(config, images=(), cache=config.cache.with_name("grown"))
    extract(replace(grown, texts=both[:1]))
    assert digests(extract(replace(grown, texts=both))) == at_once


def test_a_finished_extract_runs_again_without_loading_anything(config: ExtractConfig) -> None:
    extract(config)
    before = {path: path.stat().st_mtime_ns for path in config.cache.rglob("*") if path.name != "lock.json"}
    program = (
        "import sys; from pathlib import Path\n"
        "from stages.extract.job import open_job; from stages.extract.config import ExtractConfig\n"
        "cache, images, texts, teacher = sys.argv[1:]\n"
        "config = ExtractConfig(cache=Path(cache), images=(images,), texts=(texts,), teacher=teacher)\n"
        "with open_job(config) as job: assert job.tasks == []\n"
        "heavy = {'torch', 'tests.corpora.stub_teacher', 'ray', 'faiss'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    arguments = [str(config.cache), *config.images, *config.texts, STUB]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, cwd=ROOT)
    kept = {path: stamp for path, stamp in before.items() if path.is_file() and not path.name.startswith(".")}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_cache_of_another_teacher_is_refused_with_both_sides_and_the_way_out(config: ExtractConfig) -> None:
    extract(config)
    other = replace(config, teacher=stub(seed=5, version=2))
    with pytest.raises(MismatchError, match=r"was made by .*dim=16 \(\w{6}\), this run asks for .*--add-teacher"):
        extract(other)


def test_a_second_teacher_is_put_beside_the_first_when_asked_to(config: ExtractConfig) -> None:
    first = digests(extract(config))
    extract(replace(config, teacher=stub(dim=8, version=2), images=(), texts=(), add_teacher=True))
    cache = Cache.open(config.cache)
    assert len(cache.arrays("image")) == len(cache.arrays("text")) == 2
    assert set(first.values()) < {cache.array(m, n).digest() for m in cache.modalities for n in cache.arrays(m)}
    assert verify_cache(config.cache) == []


def test_without_a_teacher_the_one_of_the_cache_is_used(config: ExtractConfig) -> None:
    summary = extract(config, only=2)
    assert extract(replace(config, teacher=None)).keys() == summary.keys()
    with pytest.raises(UsageError, match="name the --teacher"):
        extract(replace(config, teacher=None, cache=config.cache.with_name("new")))


def test_an_unusable_feature_costs_its_row_and_is_counted(config: ExtractConfig) -> None:
    summary = extract(replace(config, teacher=stub(nan_text="number 11", zero_text="number 12"), images=()))
    (array,) = summary.values()
    assert (array["ok"], array["bad"]) == (97, 3)
    outcomes = outcomes_in(config.cache, "text")
    assert [outcomes[key][0] for key in ("12", "13")] == ["feature-not-finite", "feature-zero-norm"]


def test_more_bad_rows_than_allowed_stop_the_run(config: ExtractConfig) -> None:
    with pytest.raises(TooManyBadRows, match=r"2 of 40 images are bad, more than --max-bad-fraction 0\.03"):
        extract(replace(config, max_bad_fraction=0.03))


def test_a_teacher_that_cannot_be_loaded_leaves_nothing_behind(config: ExtractConfig) -> None:
    for teacher in ("python:tests.no_such_module:make", "openclip:ViT-B-32"):
        with pytest.raises((UsageError, RefusedError)):
            extract(replace(config, teacher=teacher))
    assert not config.cache.exists()


def test_other_part_rows_than_those_of_the_cache_are_refused(config: ExtractConfig) -> None:
    extract(config, only=1)
    with pytest.raises(MismatchError, match="has part rows 16, this run asks for 32"):
        extract(replace(config, part_rows=32))


def test_a_picture_that_changed_between_two_arrays_is_named(config: ExtractConfig, data: Path, tmp_path: Path) -> None:
    import shutil

    pictures = shutil.copytree(data / "pictures", tmp_path / "pictures")
    mine = replace(config, images=(str(pictures),), texts=())
    extract(mine)
    size = (pictures / "005.png").stat().st_size
    noise = os.urandom(size)
    (pictures / "005.png").write_bytes(noise)
    with pytest.raises(MismatchError, match="'005"):
        extract(replace(mine, teacher=stub(version=2), add_teacher=True))
