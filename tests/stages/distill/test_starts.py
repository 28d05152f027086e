"""`init` in a run: the student begins with another's weights, the record names them, and a resume finds them again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cache_schema.errors import MismatchError, UsageError
from stages.distill.config import DistillConfig
from stages.distill.run import TrainingStopped, distill
from stages.runs.folder import RunFolder
from stages.runs.record import read_record
from stages.students import load_image_tower
from tests.corpora.extracts import extracted_cache
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import write_sources
from tests.corpora.stub_teacher import stub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the caches of two teachers of different width, and a run on the first."""
    folder = tmp_path_factory.mktemp("corpora")
    sources = write_sources(folder, num_images=20, num_texts=30)
    for dim in (16, 24):
        extracted_cache(folder / str(dim), *sources, teacher=stub(dim=dim))
    distill(first_of(folder))
    return folder


def first_of(folder: Path) -> DistillConfig:
    sizes = {"steps": 2, "batch_size": 8, "checkpoint_steps": 1, "keep_checkpoints": 4}
    return distill_config(folder / "16", folder / "first", student="timm:test_vit?image_size=32", **sizes)


def second_of(folder: Path, out: Path, init: str) -> DistillConfig:
    return replace(first_of(folder), cache=folder / "24", out=out, init=Path(init), student=None)


@pytest.mark.parametrize("name", ["first", "first@1", "first/model"])
def test_a_run_begins_with_another_student_of_another_width(folder: Path, tmp_path: Path, name: str) -> None:
    config = second_of(folder, tmp_path / "second", str(folder / name))
    said: list[str] = []
    with pytest.raises(TrainingStopped):
        distill(config, notice=said.append, should_stop=stop_after(0))
    here = load_file(config.out / "checkpoints" / "step-000000000.safetensors")
    if "@" in name:
        there = load_file(folder / "first" / "checkpoints" / "step-000000001.safetensors")
    else:
        there = {f"model.tower.{k}": v for k, v in load_image_tower(folder / "first").tower.state_dict().items()}
    taken = [key for key in here if key.startswith("model.") and not key.startswith("model.tower.head.proj")]
    assert len(taken) > 10 and all(torch.equal(here[key], there[key]) for key in taken)
    assert any("head.proj.weight start anew" in sentence for sentence in said)
    assert len(read_record(RunFolder(config.out)).asked["init"]) == 64
    assert distill(config)["steps"] == 2


def test_a_run_that_began_with_other_weights_is_another_run(folder: Path, tmp_path: Path) -> None:
    config = second_of(folder, tmp_path / "second", str(folder / "first@1"))
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=stop_after(1))
    with pytest.raises(MismatchError, match="init: "):
        distill(replace(config, init=folder / "first"))


def test_two_starts_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="use --from for a further round of the same student, --init for another one"):
        replace(first_of(folder), from_run=folder / "first", init=folder / "first")


def test_mean_and_std_of_the_start_are_those_of_a_further_round(folder: Path, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    backbone = timm.create_model("resnet10t")
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    first = replace(first_of(folder), student="timm:resnet10t?image_size=32", out=tmp_path / "one")
    distill(replace(first, init=tmp_path / "backbone.pth"))
    mean = load_image_tower(tmp_path / "one").preprocess.mean
    assert mean == pytest.approx((0.485, 0.456, 0.406))
    distill(replace(first, from_run=tmp_path / "one", out=tmp_path / "two"))
    assert load_image_tower(tmp_path / "two").preprocess.mean == mean
