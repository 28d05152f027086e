"""Distillation end to end on a small cache: it learns, it resumes bit for bit, and it refuses what it must."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_schema import lock
from cache_schema.cache import Cache
from cache_schema.errors import (
    DamagedError,
    DivergedError,
    LockedError,
    MismatchError,
    RefusedError,
    UnfinishedError,
    UsageError,
)
from stages.distill.config import DistillConfig
from stages.distill.run import TrainingStopped, distill
from stages.runs.folder import RunFolder
from stages.students import load_image_tower
from tests.corpora import tiny_cache
from tests.corpora.by_hand import scored, write_neighbours
from tests.corpora.extracts import extracted_cache
from tests.corpora.resealed import exchange
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import small_cache, write_sources
from tests.corpora.stub_teacher import stub

STUDENT = "timm:resnet10t?image_size=32&drop=0.1"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(cache: Cache, tmp_path: Path) -> DistillConfig:
    sizes = {"steps": 6, "batch_size": 16, "text_batch_size": 24}
    return distill_config(cache.path, tmp_path / "run", student=STUDENT, logit_scale=20.0, **sizes)


def _metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _weights(run):
    return (run / "model" / "image_tower.safetensors").read_bytes()


def test_the_default_configuration_trains_on_all_ok_images_and_says_so(cache, tmp_path):
    said = []
    config = DistillConfig(cache=cache.path, out=tmp_path / "run", student=STUDENT, num_threads=1)
    with pytest.raises(TrainingStopped, match="stopped at step 1 of 100"):
        distill(config, notice=said.append, should_stop=stop_after(1))
    assert "100 steps of 48 images and 80 sentences" in said[0]


def test_training_brings_the_student_closer_to_its_teacher(config):
    result = distill(replace(config, steps=60, weights={"feature": 5.0}, learning_rate=2e-3, min_crop=0.8, flip=False))
    metrics = _metrics(config.out)
    assert [line["step"] for line in metrics] == list(range(1, 61))
    assert metrics[-1]["cosine"] > metrics[0]["cosine"] + 0.3
    assert np.mean([line["vl"] for line in metrics[-5:]]) < np.mean([line["vl"] for line in metrics[:5]])
    assert result["cosine"] == metrics[-1]["cosine"] and result["images_seen"] == 60 * 16
    assert any((config.out / "tensorboard").glob("events.out.tfevents.*"))


def test_features_recomputed_from_the_saved_run_equal_those_at_the_end_of_training(config):
    from stages.images.preprocess import normalise, prepare_pixels
    from stages.teachers.probe_inputs import probe_images

    distill(config)
    student = load_image_tower(config.out)
    from PIL import Image

    pixels = np.stack([prepare_pixels(Image.fromarray(picture), student.preprocess) for picture in probe_images()])
    with torch.inference_mode():
        features = student(torch.from_numpy(normalise(pixels, student.preprocess))).numpy()
    with np.load(config.out / "model" / "image_tower_probes.npz") as stored:
        assert np.array_equal(features / np.linalg.norm(features, axis=1, keepdims=True), stored["features"])


@pytest.mark.parametrize("stops", [[0], [3], [1, 3]])
def test_a_stopped_and_resumed_run_ends_bit_identical(config, stops):
    distill(config)
    resumed = replace(config, out=config.out.with_name("resumed"), fresh=False)
    done = 0
    for stop in stops:
        with pytest.raises(TrainingStopped, match="run again to go on"):
            distill(resumed, should_stop=stop_after(stop - done))
        done = stop
    said = []
    distill(resumed, notice=said.append)
    assert any(f"after step {done}" in sentence for sentence in said)
    assert _weights(resumed.out) == _weights(config.out)
    assert (resumed.out / "metrics.jsonl").read_bytes() == (config.out / "metrics.jsonl").read_bytes()


KILLED_RUN = """
import sys, time
from pathlib import Path
from stages.distill.run import distill
from stages.distill.config import DistillConfig
cache, out = map(Path, sys.argv[1:])
def progress(done, total, unit, note=""):
    if unit == "steps":
        print(done, flush=True)
        if done == 5:
            time.sleep(60)
distill(DistillConfig(cache=cache, out=out, student=%r, steps=6, batch_size=16, text_batch_size=24, logit_scale=20.0,
    num_threads=1, decode_workers=1, checkpoint_steps=2), progress=progress)
"""


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_ends_bit_identical(config):
    config = replace(config, checkpoint_steps=2)
    distill(config)
    killed = replace(config, out=config.out.with_name("killed"))
    code = KILLED_RUN % STUDENT
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(killed.cache), str(killed.out)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "5":  # one step past the checkpoint at 4
            break
    # A checkpoint is written beside the steps that follow it.
    until = time.monotonic() + 30
    while not (killed.out / "checkpoints" / "step-000000004.json").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(_metrics(killed.out)) == 5
    said = []
    distill(killed, notice=said.append)
    assert any("after step 4 of 6" in sentence for sentence in said)
    assert _weights(killed.out) == _weights(config.out)
    assert (killed.out / "metrics.jsonl").read_bytes() == (config.out / "metrics.jsonl").read_bytes()


def test_a_run_that_has_ended_returns_its_result_without_training(config):
    first = distill(config)
    modified = (config.out / "model" / "image_tower.safetensors").stat().st_mtime_ns
    said = []
    assert distill(config, notice=said.append) == first
    assert "has ended before" in said[0]
    assert (config.out / "model" / "image_tower.safetensors").stat().st_mtime_ns == modified


def test_another_configuration_is_refused_with_the_fields_and_fresh_starts_over(config):
    distill(config)
    (config.out / "model" / "mine.txt").write_text("not ours")
    other = replace(config, learning_rate=1e-3, steps=4)
    with pytest.raises(MismatchError, match=r"learning_rate: 0.001 now, 0.0008 then; steps: 4 now, 6 then.*--fresh"):
        distill(other)
    distill(replace(other, fresh=True))
    assert len(_metrics(config.out)) == 4
    assert (config.out / "model" / "mine.txt").exists(), "only our own files are removed"


def test_speed_settings_may_change_between_sessions(config):
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=stop_after(2))
    distill(replace(config, decode_workers=3, checkpoint_steps=1, keep_checkpoints=1))
    assert len(_metrics(config.out)) == 6


def test_a_second_round_starts_from_the_first_and_records_its_weights(config):
    first = distill(config)
    second = replace(config, out=config.out.with_name("second"), from_run=config.out, student=None, seed=1)
    distill(second)
    run = json.loads((second.out / "run.json").read_text())
    assert run["asked"]["from"] == first["weights_sha256"]
    assert run["asked"]["student"]["specification"] == STUDENT
    # The first step of the second round sees the student that the first one ended with.
    assert _metrics(second.out)[0]["cosine"] > _metrics(config.out)[0]["cosine"]


def test_a_new_round_starts_from_any_checkpoint_that_is_kept_and_records_its_weights(config):
    from safetensors.torch import load_file

    kept = replace(config, checkpoint_steps=2, keep_checkpoints=9)
    distill(kept)
    second = replace(config, out=config.out.with_name("second"), from_run=Path(f"{config.out}@2"), student=None, seed=1)
    with pytest.raises(TrainingStopped):
        distill(second, should_stop=stop_after(0))
    there, here = (
        load_file(run / "checkpoints" / f"step-{step:09d}.safetensors")
        for run, step in ((kept.out, 2), (second.out, 0))
    )
    weights = [name for name in there if name.startswith("model.")]
    assert weights and all(torch.equal(there[name], here[name]) for name in weights)
    data = (kept.out / "checkpoints" / "step-000000002.safetensors").read_bytes()
    asked = json.loads((second.out / "run.json").read_text())["asked"]
    assert asked["from"] == hashlib.sha256(data).hexdigest()
    with pytest.raises(UsageError, match="own --out"):
        distill(replace(kept, from_run=Path(f"{config.out}@2")))
    with pytest.raises(UsageError, match="no checkpoint after step 3"):
        distill(replace(second, from_run=Path(f"{config.out}@3"), fresh=True))


def test_a_second_round_stops_when_the_first_has_changed_since(config):
    distill(config)
    second = replace(config, out=config.out.with_name("second"), from_run=config.out)
    with pytest.raises(TrainingStopped):
        distill(second, should_stop=stop_after(1))
    distill(replace(config, seed=5, fresh=True))
    with pytest.raises(MismatchError, match="from: '"):
        distill(second)


def test_starting_from_another_architecture_is_refused(config):
    distill(config)
    other = replace(
        config, out=config.out.with_name("other"), from_run=config.out, student="timm:resnet14t?image_size=32"
    )
    with pytest.raises(MismatchError, match="cannot start from"):
        distill(other)
    assert not other.out.exists()


def test_starting_from_a_pickle_or_from_itself_is_refused(config, tmp_path):
    pickled = tmp_path / "checkpoint.pt"
    torch.save({"a": torch.zeros(1)}, pickled)
    with pytest.raises(RefusedError, match="may run code, so it is not opened"):
        distill(replace(config, from_run=pickled))
    with pytest.raises(UsageError, match="own --out"):
        distill(replace(config, from_run=config.out))


def test_micro_batches_change_memory_and_not_the_loss(config):
    vit = replace(config, student="timm:vit_tiny_patch16_224", steps=1, batch_size=4, learning_rate=1e-4)
    distill(vit)
    small = replace(vit, out=config.out.with_name("small"), micro_batch_size=2)
    distill(small)
    whole, accumulated = _metrics(vit.out)[0], _metrics(small.out)[0]
    assert accumulated["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert accumulated["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)


def _mine(cache, name, *, images="image", texts="text"):
    """Mines by hand: the neighbours of image row i are sentence rows 3i+2, 3i+1, 3i."""
    rows = np.arange(cache.plan(images).num_rows)
    ids = np.minimum(rows[:, None] * 3 + [2, 1, 0], cache.plan(texts).row_end - 1)
    found = scored(cache.array(images), cache.array(texts), ids)
    write_neighbours(cache, name, *found, images=images, texts=texts)


def test_mined_negatives_are_part_of_what_was_asked_and_change_the_sentences(cache, config):
    _mine(cache, "by-hand")
    distill(config)
    mined = replace(config, out=config.out.with_name("mined"), negatives="mined:by-hand")
    distill(mined)
    assert _metrics(mined.out)[0]["pvl"] == _metrics(config.out)[0]["pvl"], "the images are the same"
    assert _metrics(mined.out)[0]["vl"] != _metrics(config.out)[0]["vl"]
    with pytest.raises(MismatchError, match="negatives: None now"):
        distill(replace(mined, negatives="random"))


def test_neighbours_of_sentences_are_refused_as_negatives(cache, config):
    _mine(cache, "backwards", images="text", texts="image")
    with pytest.raises(MismatchError, match=r"were mined from text .* to image .*, this run needs image .* to text"):
        distill(replace(config, negatives="mined:backwards"))


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_keys_and_keeps_the_checkpoint(config):
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=stop_after(2))
    checkpoint = RunFolder(config.out).checkpoints / "step-000000002.safetensors"
    from safetensors.torch import load_file

    from stages.runs.checkpoint import save_checkpoint
    from stages.runs.record import read_record

    tensors = load_file(checkpoint)
    # As large as float32 allows, so that it is the features that overflow.
    tensors["model.tower.head.proj.weight"][0] = 3e38
    run = read_record(RunFolder(config.out)).fingerprint
    save_checkpoint(checkpoint.parent, tensors, step=3, run=run, state={}, keep=5)
    with pytest.raises(DivergedError, match=r"step 4 of .* has loss nan.*16 of 16 student features.*\.png'"):
        distill(config)
    assert checkpoint.exists()


def test_an_output_folder_with_other_things_is_refused_and_untouched(config):
    config.out.mkdir()
    (config.out / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(RefusedError, match=r"is not a distillation run \(it holds thesis\.tex\)"):
            distill(replace(config, fresh=fresh))
    assert [path.name for path in config.out.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="is a file"):
        distill(replace(config, out=config.out / "thesis.tex"))


def test_two_runs_cannot_train_in_one_folder(config, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    config.out.mkdir()
    with RunFolder(config.out).lock(), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        distill(config)


def test_an_unfinished_cache_is_refused_with_its_progress(tmp_path):
    cache = tiny_cache.create_cache(tmp_path / "cache", 16)
    tiny_cache.add_array(cache, "image", tiny_cache.unit_features(40, 8), parts=(0, 1))
    tiny_cache.add_array(cache, "text", tiny_cache.unit_features(40, 8))
    with pytest.raises(UnfinishedError, match="2 of 3 parts are committed"):
        distill(DistillConfig(cache=cache.path, out=tmp_path / "run", student=STUDENT))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 49}, "batch size 49 does not fit the 48 ok images"),
        ({"text_batch_size": 81}, "text batch size 81 does not fit the 80 ok sentences"),
        ({"weights": {"lv": 1.0}}, "unknown loss 'lv'.*did you mean 'vl'"),
        ({"student": "timm:resnet10"}, "unknown timm student"),
        ({"negatives": "mined:nearest"}, "unknown neighbours .*'nearest'"),
        ({"image_array": "vit-l"}, "unknown image array"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_what_the_cache_cannot_give_is_a_usage_error_before_anything_is_written(config, changes, message):
    with pytest.raises(UsageError, match=message):
        distill(replace(config, **changes))
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0: use a value above 0"),
        ({"learning_rate": -1e-3}, "above 0"),
        ({"learning_rate": 1e9}, "at most 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"logit_scale": 0.0}, "logit_scale is 0"),
        ({"temperatures": {"vl": 0.0}}, "temperature of loss vl is 0"),
        ({"weights": {"vl": -1.0}}, "weight of loss vl is -1"),
        ({"weights": {"vl": 0.0, "pvl": 0.0}}, "nothing to learn from"),
        ({"negatives": "hard"}, "negatives 'hard' are unknown"),
        ({"negatives": "mined:"}, "name no neighbours"),
        ({"min_crop": 0.0}, "min_crop is 0"),
        ({"precision": "float16"}, "unknown precision 'float16'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_values_out_of_range_are_usage_errors(config, changes, message):
    with pytest.raises(UsageError, match=message):
        replace(config, **changes)


def test_losses_that_are_not_named_keep_their_default_weight():
    config = DistillConfig(cache=Path("c"), out=Path("o"), weights={"feature": 1.0})
    assert config.weights == {"vl": 0.7, "pvl": 0.3, "udist": 0.0, "feature": 1.0}


def test_vit_b_32_trains_two_steps_towards_a_teacher_768_wide(tmp_path):
    sources = write_sources(tmp_path, num_images=4, num_texts=8)
    cache = extracted_cache(tmp_path / "cache", *sources, teacher=stub(dim=768))
    result = distill(
        DistillConfig(cache=cache.path, out=tmp_path / "run", student="open_clip:ViT-B-32", steps=2, batch_size=2)
    )
    assert result["num_parameters"] == 88_045_824  # 12 layers 768 wide, 224 px in patches of 32
    assert np.isfinite(result["loss"])


@pytest.mark.parametrize(("modality", "kind"), [("image", "shard"), ("image", "samples"), ("text", "rows")])
def test_a_record_sealed_anew_over_exchanged_files_is_refused_before_the_first_step(
    cache, config, tmp_path, modality, kind
):
    copy = Cache.open(shutil.copytree(cache.path, tmp_path / "resealed"))
    exchange(copy.array(modality), kind)
    with pytest.raises(DamagedError, match="run `pipeline verify`"):
        distill(replace(config, cache=copy.path))
    assert not RunFolder(config.out).metrics.exists() and not (config.out / "model").exists()
