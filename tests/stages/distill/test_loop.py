"""One process's part of a run: when it saves, what it says, how it stops, and the words for too little memory."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_schema.cache import Cache
from cache_schema.errors import DivergedError, EnvironmentProblem
from stages.distill.config import DistillConfig
from stages.distill.loop import TrainingLoop, TrainingStopped
from stages.distill.resolve import open_job
from stages.runs.folder import open_folder
from stages.runs.record import read_record, write_record
from tests.corpora.resealed import reseal
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import small_cache

Log = list[Any]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(cache: Cache, tmp_path: Path) -> DistillConfig:
    sizes = {"steps": 4, "batch_size": 8, "text_batch_size": 12, "logit_scale": 20.0}
    return distill_config(cache.path, tmp_path / "run", student="timm:test_vit?image_size=32", **sizes)


@contextmanager
def loop_of(
    config: DistillConfig,
    *,
    steps: Log | None = None,
    said: Log | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[TrainingLoop]:
    """Yields a loop about to go on with the run, under its lock; `steps` and `said` gain what it reports."""
    job, folder = open_job(config), open_folder(config.out)
    seen, heard = [] if steps is None else steps, [] if said is None else said
    with folder.lock() as lock:
        if not folder.run_json.exists():
            write_record(folder, job.new_record(), fence=lock.fence)
        yield TrainingLoop(
            job,
            folder,
            read_record(folder),
            fence=lock.fence,
            progress=lambda *step: seen.append(step),
            notice=heard.append,
            should_stop=should_stop,
        )


def checkpoints(config: DistillConfig) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in (config.out / "checkpoints").glob("*.json"))


def test_every_step_is_reported_and_the_result_is_that_of_the_last(config: DistillConfig) -> None:
    steps: Log = []
    with loop_of(config, steps=steps) as loop:
        result = loop.finish()
    reported = [step for step in steps if step[2] == "steps"]
    assert [step[:3] for step in reported] == [(done, 4, "steps") for done in range(1, 5)]
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == pytest.approx([done * 8 / 48 for done in range(1, 5)])
    assert result["loss"] == lines[-1]["loss"] and result["cosine"] == lines[-1]["cosine"]
    assert reported[-1][3].startswith(f"loss {lines[-1]['loss']:.4f}, cosine {lines[-1]['cosine']:.3f}, ")
    assert (result["steps"], result["images_seen"], result["has_text_tower"]) == (4, 32, False)
    assert result["num_parameters"] == sum(value.numel() for value in loop.job.student.parameters())
    kept = read_record(open_folder(config.out)).result
    assert kept is not None and dict(kept) == result


@pytest.mark.parametrize(
    ("fields", "saved"),
    [
        ({"checkpoint_steps": 1, "keep_checkpoints": 9}, [1, 2, 3]),
        ({"checkpoint_steps": 2, "keep_checkpoints": 9}, [2]),
        ({"checkpoint_steps": 1, "keep_checkpoints": 2}, [2, 3]),
        ({"checkpoint_seconds": 1e-9, "keep_checkpoints": 9}, [1, 2, 3]),
        ({}, []),
    ],
)
def test_state_is_saved_as_often_as_asked_and_never_after_the_last_step(
    config: DistillConfig, fields: dict[str, Any], saved: list[int]
) -> None:
    with loop_of(replace(config, **fields)) as loop:
        loop.finish()
    assert checkpoints(config) == saved


def test_a_stop_saves_says_where_and_is_gone_on_from(config: DistillConfig) -> None:
    with loop_of(config, should_stop=stop_after(3)) as loop, pytest.raises(TrainingStopped) as stop:
        loop.finish()
    assert str(stop.value) == f"stopped at step 3 of 4, state saved in {config.out}: run again to go on"
    assert isinstance(stop.value, KeyboardInterrupt) and checkpoints(config) == [3]
    said: Log = []
    with loop_of(config, said=said) as loop:
        loop.finish()
    assert said[0] == f"resuming {config.out} after step 3 of 4"
    sessions = read_record(open_folder(config.out)).about["sessions"]
    assert [session["first_step"] for session in sessions] == [0, 3]
    assert not any("bit-identical" in sentence for sentence in said)


def test_a_session_with_other_threads_says_that_it_is_not_bit_identical(config: DistillConfig) -> None:
    with loop_of(config, should_stop=stop_after(2)) as loop, pytest.raises(TrainingStopped):
        loop.finish()
    said: Log = []
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with loop_of(config, said=said) as loop:
            loop.finish()
    finally:
        torch.set_num_threads(before)
    assert f"(num_threads: {before + 1} now, {before} before)" in said[1] and "not be bit-identical" in said[1]


@pytest.mark.parametrize(("micro", "named"), [(None, 2), (4, 1), (1, 1)])
def test_too_little_memory_names_smaller_batches_and_keeps_nothing_half_done(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch, micro: int | None, named: int
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with loop_of(replace(config, micro_batch_size=micro)) as loop:
        monkeypatch.setattr(loop, "_step", full)
        with pytest.raises(EnvironmentProblem) as problem:
            loop.finish()
    assert str(problem.value) == (
        f"cpu has not enough memory for {micro or 8} images in one forward pass and a loss over 8 images and 12 "
        f"sentences: try --micro-batch-size {named}, which leaves the loss as it is, or a smaller --text-batch-size"
    )
    assert read_record(open_folder(config.out)).result is None and not (config.out / "model").exists()


def test_a_metrics_file_that_lost_steps_is_said(config: DistillConfig) -> None:
    with loop_of(config, should_stop=stop_after(3)) as loop, pytest.raises(TrainingStopped):
        loop.finish()
    (config.out / "metrics.jsonl").write_text("")
    said: Log = []
    with loop_of(config, said=said) as loop:
        loop.finish()
    assert f"{config.out / 'metrics.jsonl'} lacks 3 steps before the checkpoint" in said


def test_a_student_that_overflows_in_its_last_step_is_never_exported(config: DistillConfig) -> None:
    with loop_of(config, should_stop=stop_after(3)) as loop, pytest.raises(TrainingStopped):
        loop.finish()
    place = config.out / "checkpoints" / "step-000000003"
    # Loss and gradient of step 4 are finite; what the optimizer makes of these finite moments is not.
    tensors = load_file(place.with_suffix(".safetensors"))
    tensors |= {name: torch.full_like(value, 3e38) for name, value in tensors.items() if name.startswith("exp_avg.")}
    save_file(tensors, place.with_suffix(".safetensors"))
    data = place.with_suffix(".safetensors").read_bytes()
    sizes = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    reseal(place.with_suffix(".json"), tensors=sizes)
    said = r"the student that .* trained is not finite \(\d+ tensors: .*: the last checkpoint stays"
    with loop_of(config) as loop, pytest.raises(DivergedError, match=said):
        loop.finish()
    assert not (config.out / "model").exists() and checkpoints(config) == [3]
