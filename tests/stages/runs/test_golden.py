"""Runs, indexes and neighbours written by released formats stay usable: tests/golden/run-1 is never changed.

`cache` has 12 pictures (one of them empty), a further view, stored pixels, 18 sentences (one of them empty), an exact
index, inverted lists, two sets of neighbours and a selection. `finished` trained four steps on it, `stopped` the first
two of them, and `replayed` two more from the end of `finished`, on the further view.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cache_schema.cache import Cache
from cache_schema.neighbours import NeighboursReader
from cache_schema.selections import read_selection
from cache_schema.verify import verify_cache
from stages.distill.config import DistillConfig
from stages.distill.run import distill
from stages.runs.folder import RunFolder
from stages.runs.record import read_record
from stages.search.index import load_index, search
from stages.search.mine import mine
from stages.students import load_image_tower
from tests.corpora.golden import RUN as GOLDEN
from tests.corpora.golden import golden_architecture

IMAGES = "tests-stub-teacher-make.v0"

# As printed when the files were made.
FINGERPRINTS = {
    "finished": "de6aa82ff54e02accbf3ea82e1bc2e5e29e5ac8870ee7acb3384fcc96d6e4333",
    "replayed": "3688a27d1fa34e7df81096d62d43ec2a4c7dae4be43df951f7fe2f121db81a30",
}
WEIGHTS = {
    "finished": "c81a4476ed07d7af5c5b2ed9e193bba706f43bf000a32490cec276f0231c062d",
    "replayed": "12c99b45ffd45381084e025ee30eb0b5c8c6d1ddbf413e565ce01119358aea5c",
}


@pytest.fixture(scope="module", autouse=True)
def tiny_student() -> Iterator[None]:
    with golden_architecture():
        yield


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of everything that a test may write to."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def config_of(folder: Path, out: str) -> DistillConfig:
    """Returns what `finished` and `stopped` were asked."""
    return DistillConfig(
        cache=folder / "cache",
        out=folder / out,
        student="open_clip:golden-tiny",
        image_array=IMAGES,
        images="unique",
        negatives="mined:near",
        steps=4,
        batch_size=6,
        text_batch_size=8,
        logit_scale=20.0,
        weights={"feature": 1.0},
        num_threads=1,
        decode_workers=0,
    )


def weights_of(run: Path) -> np.ndarray:
    tensors = load_image_tower(run).state_dict().values()
    return np.concatenate([tensor.numpy().ravel() for tensor in tensors])


def test_the_cache_of_the_golden_runs_has_no_problems() -> None:
    assert verify_cache(GOLDEN / "cache") == []


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_finished_run_is_read_and_its_student_is_loaded(name: str) -> None:
    record = read_record(RunFolder(GOLDEN / name))
    stored = json.loads((GOLDEN / name / "run.json").read_text())
    assert record.fingerprint == FINGERPRINTS[name]
    assert record.result is not None and record.result["weights_sha256"] == WEIGHTS[name]
    assert record.result["steps"] == stored["asked"]["steps"]
    assert sum(p.numel() for p in load_image_tower(GOLDEN / name).parameters()) == 6_960


def test_a_finished_run_asked_the_same_again_returns_its_result(copied: Path) -> None:
    result = distill(config_of(copied, "finished"))
    assert result["weights_sha256"] == WEIGHTS["finished"]


def test_a_stopped_run_resumes_and_ends_as_the_one_that_was_never_stopped(copied: Path) -> None:
    said: list[str] = []
    result = distill(config_of(copied, "stopped"), notice=said.append)
    assert any("after step 2 of 4" in sentence for sentence in said)
    assert result["steps"] == 4
    # The last bits belong to the machine and the libraries of then.
    assert np.abs(weights_of(copied / "stopped") - weights_of(GOLDEN / "finished")).max() < 1e-4
    assert np.abs(weights_of(copied / "stopped") - weights_of(GOLDEN / "replayed")).max() > 1e-4


def test_a_new_round_starts_from_a_finished_run(copied: Path) -> None:
    second = DistillConfig(
        cache=copied / "cache",
        out=copied / "second",
        from_run=copied / "finished",
        image_array=IMAGES,
        steps=1,
        batch_size=4,
        num_threads=1,
        decode_workers=0,
    )
    distill(second)
    assert read_record(RunFolder(second.out)).asked["from"] == WEIGHTS["finished"]


@pytest.mark.parametrize(("modality", "kind", "num_rows"), [("image", "flat", 11), ("text", "ivf", 17)])
def test_an_index_is_loaded_and_finds_every_row_itself(modality: str, kind: str, num_rows: int) -> None:
    array = Cache.open(GOLDEN / "cache").array(modality)  # type: ignore[arg-type]
    index = load_index(array)
    assert (index.info.kind, index.info.num_rows) == (kind, num_rows)
    rows = array.ok_rows()
    ids, scores = search(index, array.features.gather_unit(rows), 1)
    assert ids[:, 0].tolist() == rows.tolist()
    assert scores[:, 0] == pytest.approx(1, abs=1e-3)


def test_neighbours_are_read_and_are_the_nearest_by_brute_force() -> None:
    cache = Cache.open(GOLDEN / "cache")
    rows = cache.array("image").ok_rows()
    texts = cache.array("text").ok_rows()
    images, of_texts = (cache.array(m).features.gather_unit(r) for m, r in (("image", rows), ("text", texts)))
    nearest = texts[np.argsort(-(images @ of_texts.T), axis=1)[:, :3]]
    assert NeighboursReader(cache, "near").ids(rows).tolist() == nearest.tolist()
    assert NeighboursReader(cache, "alike").ids(rows)[:, 0].tolist() == rows.tolist()
    assert read_selection(cache, "unique").rows.tolist() == rows.tolist()


def test_neighbours_that_are_there_are_not_mined_again(copied: Path) -> None:
    cache = Cache.open(copied / "cache")
    result = mine(cache, from_array=cache.array("image"), to_array=cache.array("text"), k=3, name="near")
    assert result["parts_mined"] == 0
