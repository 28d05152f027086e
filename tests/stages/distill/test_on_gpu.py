"""What only a GPU can show. Skips itself without one."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache_schema.errors import EnvironmentProblem
from stages.distill import ahead
from stages.distill.batches import Batch
from stages.distill.config import DistillConfig
from stages.distill.losses import LOSSES, LossInputs, Side, TeacherSide, total_loss
from stages.distill.run import TrainingStopped, distill
from stages.images.prepare import TrainingPreparation
from stages.images.preprocess import CropShape
from tests.corpora.runs import stop_after
from tests.corpora.small_corpus import small_cache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return DistillConfig(
        cache=small_cache(folder).path,
        out=folder / "run",
        student="open_clip:ViT-S-32-alt?image_size=64",
        steps=6,
        batch_size=16,
        device="cuda",
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("tf32", [False, True])
def test_losses_on_the_gpu_equal_those_on_the_cpu_even_where_tf32_is_allowed(name, tf32):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(rows, 768, generator=generator) for rows in (64, 64, 200)]
    image, *teacher = features
    expected = LOSSES[name](LossInputs(Side(image), TeacherSide(*teacher), 100.0)).item()

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        found, _ = total_loss(
            image.cuda(),
            TeacherSide(*(x.cuda() for x in teacher)),
            weights={name: 1.0},
            temperatures={name: 1.0},
            logit_scale=100.0,
        )
    finally:
        torch.set_float32_matmul_precision(before)
    assert abs(found.item() - expected) <= 1e-5 * max(1, abs(expected))


def test_training_in_bfloat16_stops_and_resumes(config):
    out = config.out.with_name("resumed")
    with pytest.raises(TrainingStopped):
        distill(replace(config, out=out), should_stop=stop_after(3))
    result = distill(replace(config, out=out))
    assert np.isfinite(result["loss"]) and result["steps"] == 6


def test_micro_batches_see_the_same_loss(config):
    runs = [
        distill(replace(config, out=config.out.with_name(f"micro-{size}"), steps=1, micro_batch_size=size))
        for size in (16, 4)
    ]
    assert runs[0]["loss"] == pytest.approx(runs[1]["loss"], rel=1e-2)


def test_a_run_saved_on_the_gpu_resumes_on_the_cpu_and_says_that_it_is_not_bit_identical(config):
    moved = replace(config, out=config.out.with_name("moved"), precision="float32")
    with pytest.raises(TrainingStopped):
        distill(moved, should_stop=stop_after(2))
    said = []
    distill(replace(moved, device="cpu"), notice=said.append)
    assert any("not be bit-identical" in sentence for sentence in said)


def test_a_device_that_is_not_there_is_named_with_those_that_are(config):
    with pytest.raises(EnvironmentProblem, match="device 'cuda:99' is not there; this machine has: cpu, cuda:0"):
        distill(replace(config, device="cuda:99"))


def test_pixels_and_features_arrive_on_the_gpu_as_they_were(monkeypatch):
    # In several pieces, of which the last is a short one.
    monkeypatch.setattr(ahead, "_STAGED_BYTES", 1000)
    generator = np.random.default_rng(0)
    shapes = [CropShape((8, 6), "bicubic"), CropShape((5, 7), "bicubic")]
    pixels_BP = generator.integers(0, 256, (9, sum(3 * h * w for (h, w), _ in shapes)), np.uint8)
    batch = Batch(
        step=3,
        rows=np.arange(9),
        pixels=TrainingPreparation(tuple(shapes)).cut(pixels_BP),
        pixels_BP=pixels_BP,
        teacher_image_BD=generator.standard_normal((9, 32), np.float32),
        text_TD=generator.standard_normal((70, 32), np.float32),
    )
    (uploaded,) = ahead._uploaded([SimpleNamespace(result=lambda: batch)], torch.device("cuda"))
    uploaded.receive()
    assert np.array_equal(uploaded.teacher.image_BD.cpu().numpy(), batch.teacher_image_BD)
    assert np.array_equal(uploaded.teacher.text_TD.cpu().numpy(), batch.text_TD)
    for shape in shapes:
        assert np.array_equal(uploaded.pixels[shape].cpu().numpy(), batch.pixels[shape])
    assert uploaded.batch.step == 3 and uploaded.batch.pixels_BP.size == 0, "this side's memory is free"
