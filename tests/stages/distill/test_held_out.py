"""Images that are held out (`hold_out`) are never seen by the student, are measured as by NumPy, and change nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

from cache_schema.cache import Cache
from cache_schema.errors import UsageError
from cache_schema.json_file import read_sealed
from stages.distill.config import DistillConfig
from stages.distill.held_out import _are_among, _ascending, held_out_rows, without_held_out
from stages.distill.resolve import open_feed
from stages.distill.run import TrainingStopped, distill, distill_side_by_side
from stages.evaluate.run import EvaluateConfig, evaluate_model
from stages.runs.checkpoint import checkpoint_steps
from stages.students import Student, load_image_tower
from tests.corpora.by_hand import select
from tests.corpora.extracts import extracted_cache
from tests.corpora.held_out import write_held_out
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import write_sources
from tests.corpora.tiny_open_clip import make_tiny_open_clip

NUM_IMAGES, COPIES = 60, {50: 3, 51: 4, 52: 5}
"""Pictures of the corpus; of some there is a second one, with another name and the same bytes."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("corpus")
    pictures, sentences = write_sources(folder, num_images=NUM_IMAGES, num_texts=70, empty_images=(7,))
    # A pixel of its own tells every picture from all others, so that what the student sees can be told too.
    for number in set(range(NUM_IMAGES)) - {7}:
        image = Image.open(pictures / f"{number:04d}.png")
        image.paste((number, 255 - number, 2 * number), (0, 0, 40, 40))
        image.save(pictures / f"{number:04d}.png")
    for copy, number in COPIES.items():
        (pictures / f"{copy:04d}.png").write_bytes((pictures / f"{number:04d}.png").read_bytes())
    make_tiny_open_clip(folder / "teacher")
    return extracted_cache(
        folder / "cache", pictures, sentences, teacher=f"open_clip:local-dir:{folder / 'teacher'}", part_rows=16
    )


@pytest.fixture
def config(cache: Cache, tmp_path: Path) -> DistillConfig:
    sizes = {"steps": 6, "batch_size": 8, "text_batch_size": 12, "logit_scale": 20.0, "measure_steps": 2}
    return distill_config(cache.path, tmp_path / "run", student="timm:test_efficientnet?image_size=32", **sizes)


def numbers_of(pixels_BCHW: torch.Tensor, student: Student) -> set[int]:
    """Returns which pictures of the corpus are in a batch of normalised pixels."""
    mean, std = student.preprocess.mean[0], student.preprocess.std[0]
    return set(((pixels_BCHW[:, 0, 16, 16] * std + mean) * 255).round().int().tolist())


def held_out_numbers(config: DistillConfig) -> set[int]:
    held_out = open_feed(config).held_out
    assert held_out is not None
    return set(held_out.rows.tolist())


def measured(config: DistillConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.out / "held_out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", ["share", "selection"])
@pytest.mark.parametrize("memory", [2 << 30, 0], ids=["in memory", "streamed"])
def test_the_student_trains_on_all_other_pictures_and_on_no_held_out_one_nor_its_copy(
    cache: Cache, config: DistillConfig, how: str, memory: int
) -> None:
    if how == "selection":
        select(cache, "apart", [3, 20, 41, 59])
    asked = replace(
        config, hold_out="0.2" if how == "share" else "apart", steps=14, picture_memory_bytes=memory, measure_steps=100
    )
    trained: set[int] = set()

    def look(module: torch.nn.Module, inputs: tuple, output: Any) -> None:
        if isinstance(module, Student) and module.training and len(inputs[0]) == 8:
            trained.update(numbers_of(inputs[0], module))

    handle = register_module_forward_hook(look)
    try:
        distill(asked)
    finally:
        handle.remove()
    held_out = held_out_numbers(asked)
    if how == "selection":
        assert held_out == {3, 20, 41, 59}
    never = held_out | {copy for copy, number in COPIES.items() if number in held_out}
    # Copies look like what they are copies of.
    everything = set(range(NUM_IMAGES)) - {7} - COPIES.keys()
    assert trained == everything - never
    assert len(held_out) >= 4


def test_the_sides_do_not_depend_on_order_seed_or_growth_and_copies_lie_on_one_side(cache: Cache) -> None:
    rows = cache.array("image").ok_rows()
    held_out = held_out_rows(cache, rows, 0.5)
    assert 0.3 < len(held_out) / len(rows) < 0.7
    half = rows[: len(rows) // 2]
    assert held_out_rows(cache, half, 0.5).tolist() == [row for row in held_out if row in half]
    for copy, number in COPIES.items():
        assert (copy in held_out) == (number in held_out)
    assert set(held_out_rows(cache, rows, 0.2)) < set(held_out), "a smaller share holds out some of the same"
    assert sorted([*without_held_out(cache, rows, held_out), *held_out]) == rows.tolist()


def test_digests_that_begin_or_end_alike_are_told_apart() -> None:
    halves = [value.to_bytes(8, "little") for value in (0, 1, 5, 2**64 - 1)]
    digests = [first + second for first in halves for second in halves]
    held_out = [digests[place] for place in (15, 0, 3, 6, 7, 6, 13)]
    found = _are_among(_ascending(b"".join(held_out)), b"".join(digests))
    assert found.tolist() == [digest in held_out for digest in digests]
    assert not _are_among(_ascending(b""), b"".join(digests)).any()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("0.00001", "holds out 0 of 59 images: name a share"),
        ("1.5", "is no share: use a number above 0 and below 1"),
        ("nan", "is no share"),
        ("nothing", "nothing"),
    ],
)
def test_what_cannot_be_held_out_is_refused(config: DistillConfig, asked: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        distill(replace(config, hold_out=asked))
    assert not config.out.exists()


def test_a_batch_that_the_rest_cannot_fill_is_refused_with_its_size(config: DistillConfig) -> None:
    with pytest.raises(UsageError, match="batch size 59 does not fit"):
        distill(replace(config, hold_out="0.2", batch_size=59))


def test_measuring_changes_nothing_of_the_training(config: DistillConfig) -> None:
    often, never = (
        replace(config, hold_out="0.2", measure_steps=steps, ema=0.5, out=config.out.with_name(f"every-{steps}"))
        for steps in (1, 1000)
    )
    assert distill(often)["weights_sha256"] == distill(never)["weights_sha256"]
    assert (often.out / "metrics.jsonl").read_bytes() == (never.out / "metrics.jsonl").read_bytes()
    assert [line["step"] for line in measured(often)] == [1, 2, 3, 4, 5, 6]
    assert measured(never) == measured(often)[-1:]


def test_what_is_measured_is_what_numpy_makes_of_the_exported_student(cache: Cache, config: DistillConfig) -> None:
    asked = replace(config, hold_out="0.2", weights={"feature": 2.0, "vl": 0.5, "pvl": 0.0}, ema=0.5)
    distill(asked)
    last = measured(asked)[-1]
    assert [line["step"] for line in measured(asked)] == [2, 4, 6]
    student = load_image_tower(asked.out)
    rows = sorted(held_out_numbers(asked))
    mean, std = (np.array(value) for value in (student.preprocess.mean, student.preprocess.std))
    made = []
    for location in cache.locations(np.array(rows)):
        image = Image.open(Path(location.uri) / location.key).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        pixels = (np.asarray(image) / 255 - mean) / std
        with torch.no_grad():
            made.append(student(torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32))[0].numpy())
    z = np.stack(made).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    u = cache.array("image").features.gather_unit(np.array(rows)).astype(np.float64)
    v = cache.array("text").features.gather_unit(cache.array("text").ok_rows()).astype(np.float64)
    assert last["cosine"] == pytest.approx((z * u).sum(axis=1).mean(), abs=1e-5)
    assert last["agreement"] == ((z @ v.T).argmax(axis=1) == (u @ v.T).argmax(axis=1)).mean()
    # The sentences of the loss are drawn, and always the same; the cosine part of it does not see them.
    only = replace(asked, weights={"feature": 2.0, "vl": 0.0, "pvl": 0.0}, out=config.out.with_name("feature"))
    distill(only)
    line = measured(only)[-1]
    assert line["loss"] == pytest.approx(2 * (1 - line["cosine"]), abs=1e-5)


def test_the_best_checkpoint_by_agreement_stays_beside_the_newest(config: DistillConfig) -> None:
    asked = replace(config, hold_out="0.3", measure_steps=1, keep_checkpoints=1, steps=8, learning_rate=5e-3)
    distill(asked)
    agreements = {int(line["step"]): line["agreement"] for line in measured(asked)}
    best = max(agreements, key=lambda step: (agreements[step], -step))
    stored = read_sealed(asked.out / "checkpoints" / "best.json")
    assert (stored["step"], stored["agreement"]) == (best, agreements[best])
    assert checkpoint_steps(asked.out / "checkpoints") == sorted({best, 8})


def test_a_stopped_run_goes_on_with_its_measurements_and_its_best(config: DistillConfig) -> None:
    asked = replace(config, hold_out="0.3", measure_steps=1, keep_checkpoints=1, learning_rate=5e-3)
    whole = replace(asked, out=config.out.with_name("whole"))
    distill(whole)
    with pytest.raises(TrainingStopped):
        distill(asked, should_stop=stop_after(3))
    distill(asked)
    assert (asked.out / "held_out.jsonl").read_bytes() == (whole.out / "held_out.jsonl").read_bytes()
    best = Path("checkpoints") / "best.json"
    assert (asked.out / best).read_bytes() == (whole.out / best).read_bytes()


def test_students_side_by_side_are_measured_as_alone(config: DistillConfig) -> None:
    asked = [
        replace(config, hold_out="0.2", out=config.out / name, student=f"timm:test_vit?image_size={size}")
        for name, size in (("small", 32), ("large", 48))
    ]
    distill_side_by_side(asked)
    for one in asked:
        alone = replace(one, out=config.out.with_name(one.out.name))
        distill(alone)
        assert (one.out / "held_out.jsonl").read_bytes() == (alone.out / "held_out.jsonl").read_bytes()


def test_a_run_with_other_images_held_out_is_another_run(config: DistillConfig) -> None:
    from cache_schema.errors import MismatchError

    distill(replace(config, hold_out="0.2"))
    with pytest.raises(MismatchError, match="held_out: "):
        distill(replace(config, hold_out="0.3"))


def test_a_probe_measures_what_evaluate_does_of_the_student_at_that_step(config: DistillConfig, tmp_path: Path) -> None:
    data = write_held_out(tmp_path / "set")
    asked = replace(config, probe=data, measure_steps=3)
    distill(asked)
    plain = replace(config, out=config.out.with_name("plain"))
    distill(plain)
    assert (asked.out / "model" / "image_tower.safetensors").read_bytes() == (
        plain.out / "model" / "image_tower.safetensors"
    ).read_bytes()
    for line, name in zip(measured(asked), (None, str(asked.out)), strict=True):
        if name is not None:
            found = evaluate_model(EvaluateConfig(model=name, data=data, decode_workers=0, num_threads=1))
            for measure in ("zero_shot_top1", "mean_per_class_recall"):
                assert line[measure] == found[measure]
    assert not (asked.out / "checkpoints" / "best.json").exists()
