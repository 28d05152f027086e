"""One student of a command: when it saves, what it says, how it stops, and what it does with too little memory."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_schema.cache import Cache
from cache_schema.errors import DivergedError, EnvironmentProblem, UsageError
from stages.distill import exported
from stages.distill.config import DistillConfig
from stages.distill.run import TrainingStopped, distill
from stages.runs.folder import open_folder
from stages.runs.record import read_record
from tests.corpora.resealed import reseal
from tests.corpora.runs import distill_config, stop_after
from tests.corpora.small_corpus import small_cache
from tests.stages.distill.recorded_steps import first_steps

Log = list[Any]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(cache: Cache, tmp_path: Path) -> DistillConfig:
    sizes = {"steps": 4, "batch_size": 8, "text_batch_size": 12, "logit_scale": 20.0}
    return distill_config(cache.path, tmp_path / "run", student="timm:test_vit?image_size=32", **sizes)


def checkpoints(config: DistillConfig) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in (config.out / "checkpoints").glob("*.json"))


def metrics(config: DistillConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_reported_and_the_result_is_that_of_the_last(config: DistillConfig) -> None:
    steps: Log = []
    result = distill(config, progress=lambda *step: steps.append(step))
    reported = [step for step in steps if step[2] == "steps"]
    assert [step[:3] for step in reported] == [(done, 4, "steps") for done in range(1, 5)]
    lines = metrics(config)
    assert [line["epoch"] for line in lines] == pytest.approx([done * 8 / 48 for done in range(1, 5)])
    assert result["loss"] == lines[-1]["loss"] and result["cosine"] == lines[-1]["cosine"]
    assert reported[-1][3].startswith(f"loss {lines[-1]['loss']:.4f}, cosine {lines[-1]['cosine']:.3f}, ")
    assert (result["steps"], result["images_seen"], result["has_text_tower"]) == (4, 32, False)
    tensors = load_file(config.out / "model" / "image_tower.safetensors")
    assert result["num_parameters"] == sum(value.numel() for value in tensors.values())
    kept = read_record(open_folder(config.out)).result
    assert kept is not None and dict(kept) == result


@pytest.mark.parametrize(
    ("fields", "saved"),
    [
        ({"checkpoint_steps": 1, "keep_checkpoints": 9}, [1, 2, 3, 4]),
        ({"checkpoint_steps": 2, "keep_checkpoints": 9}, [2, 4]),
        ({"checkpoint_steps": 1, "keep_checkpoints": 2}, [3, 4]),
        ({"checkpoint_steps": 1, "keep_checkpoints": 3}, [2, 3, 4]),
        ({"checkpoint_seconds": 1e-9, "keep_checkpoints": 9}, [1, 2, 3, 4]),
        ({}, [4]),
    ],
)
def test_state_is_saved_as_often_as_asked_and_after_the_last_step(
    config: DistillConfig, fields: dict[str, Any], saved: list[int]
) -> None:
    distill(replace(config, **fields))
    assert checkpoints(config) == saved


def test_a_run_killed_after_its_last_step_is_exported_from_its_checkpoint(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distill(replace(config, out=config.out.with_name("whole")))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(exported, "export_image_tower", killed)
        distill(config)
    assert checkpoints(config) == [4] and not (config.out / "model").exists()
    result = distill(config)
    assert result["weights_sha256"] == whole["weights_sha256"]
    assert (result["loss"], result["cosine"]) == (whole["loss"], whole["cosine"])


def test_a_stop_saves_says_where_and_is_gone_on_from(config: DistillConfig) -> None:
    with pytest.raises(TrainingStopped) as stop:
        distill(config, should_stop=stop_after(3))
    assert str(stop.value) == f"stopped at step 3 of 4, state saved in {config.out}: run again to go on"
    assert isinstance(stop.value, KeyboardInterrupt) and checkpoints(config) == [3]
    said: Log = []
    distill(config, notice=said.append)
    assert said[0] == f"resuming {config.out} after step 3 of 4"
    sessions = read_record(open_folder(config.out)).about["sessions"]
    assert [session["first_step"] for session in sessions] == [0, 3]
    assert not any("bit-identical" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("changes", "shown"), [({"num_threads": 2}, "num_threads: 2 now, 1 before"), ({"micro_batch_size": 3}, "3 now, 8")]
)
def test_a_session_with_other_threads_or_passes_says_that_it_is_not_bit_identical(
    config: DistillConfig, changes: dict[str, Any], shown: str
) -> None:
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=stop_after(2))
    said: Log = []
    distill(replace(config, **changes), notice=said.append)
    assert shown in said[1] and "not be bit-identical" in said[1]


class Short:
    """Stands for a device with room for a few images at once."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training and len(inputs[0]) > self.room:
            raise self.error


SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 12 bytes"),
    MemoryError(),
]


def with_room(room: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every student that is made from now on fail in a pass of more images than `room`."""
    from stages.students import Student

    made = Student.__init__

    def make(self: Student, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.register_forward_pre_hook(Short(room, error))

    monkeypatch.setattr(Student, "__init__", make)


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_a_pass_that_does_not_fit_is_halved_until_it_does_and_the_gradients_stay(
    config: DistillConfig, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = first_steps(replace(config, out=config.out.with_name("whole")), 3)
    with_room(4, error, monkeypatch)
    said: Log = []
    result = distill(config, notice=said.append)
    assert result["steps"] == 4 and checkpoints(config) == [4]
    assert f"not enough memory for 8 images of {config.out} in one forward pass; going on with 4" in "".join(said)
    (session,) = read_record(open_folder(config.out)).about["sessions"]
    assert session["micro_batch_size"] == 4
    again = first_steps(replace(config, out=config.out.with_name("again"), micro_batch_size=4), 3)
    for one, other in zip(whole, again, strict=True):
        for name, gradient in one.gradients.items():
            assert torch.allclose(gradient, other.gradients[name], rtol=1e-3, atol=1e-5)


def test_a_resumed_run_keeps_the_passes_that_it_came_to(config: DistillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped):
        with_room(4, MemoryError(), patch)
        distill(config, should_stop=stop_after(2))
    said: Log = []
    distill(config, notice=said.append)
    assert [s["micro_batch_size"] for s in read_record(open_folder(config.out)).about["sessions"]] == [4, 4]
    assert not any("bit-identical" in sentence for sentence in said)


def test_where_the_smallest_pass_does_not_fit_the_message_names_what_helps_and_it_does(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped = replace(config, student="timm:test_efficientnet?image_size=32")
    with_room(3, MemoryError(), monkeypatch)
    with pytest.raises(EnvironmentProblem) as problem:
        distill(grouped)
    assert "not enough memory for 8 images in one forward pass and a loss over 8 images and 12 sentences" in str(
        problem.value
    )
    for advised in ("--batch-size", "--text-batch-size", "--norm-batch-size than 8", "--fresh or another --out"):
        assert advised in str(problem.value)
    assert read_record(open_folder(config.out)).result is None and not (config.out / "model").exists()
    assert distill(replace(grouped, norm_batch_size=3, fresh=True))["steps"] == 4


def test_an_error_that_is_not_of_memory_is_not_taken_for_one(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_room(2, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), monkeypatch)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        distill(config)


def test_a_metrics_file_that_lost_steps_is_said(config: DistillConfig) -> None:
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=stop_after(3))
    (config.out / "metrics.jsonl").write_text("")
    said: Log = []
    distill(config, notice=said.append)
    assert f"{config.out / 'metrics.jsonl'} lacks 3 steps before the checkpoint" in said


def spoil_moments(config: DistillConfig, step: int) -> None:
    """Makes the moments of a checkpoint so large that the next optimizer step overflows, though its loss does not."""
    place = config.out / "checkpoints" / f"step-{step:09d}"
    tensors = load_file(place.with_suffix(".safetensors"))
    tensors |= {name: torch.full_like(value, 3e38) for name, value in tensors.items() if name.startswith("exp_avg.")}
    save_file(tensors, place.with_suffix(".safetensors"))
    data = place.with_suffix(".safetensors").read_bytes()
    sizes = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    reseal(place.with_suffix(".json"), tensors=sizes)


def test_a_student_that_overflows_in_its_last_step_is_never_exported(config: DistillConfig) -> None:
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=stop_after(3))
    spoil_moments(config, 3)
    with pytest.raises(DivergedError, match=r"is not finite \(\d+ tensors: .*: the last checkpoint stays"):
        distill(config)
    assert not (config.out / "model").exists() and checkpoints(config) == [3]


class OnceNotFinite:
    """Makes the features of some forward passes in training not finite."""

    def __init__(self, *passes: int) -> None:
        self.passes, self.seen = passes, 0

    def __call__(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor | None:
        if not module.training:
            return None
        self.seen += 1
        return output * float("nan") if self.seen in self.passes else None


def with_spoilt_passes(monkeypatch: pytest.MonkeyPatch, *passes: int) -> None:
    from stages.students import Student

    made = Student.__init__

    def make(self: Student, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.register_forward_hook(OnceNotFinite(*passes))

    monkeypatch.setattr(Student, "__init__", make)


# Two passes measure the memory before the first step.
SECOND, THIRD = 4, 5


def test_a_step_that_is_not_finite_is_left_out_when_asked_and_leaves_no_trace(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_norm = replace(config, student="timm:test_efficientnet?image_size=32", skip_nonfinite=1)
    with_spoilt_passes(monkeypatch, SECOND)
    said: Log = []
    distill(batch_norm, notice=said.append)
    lines = metrics(config)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[1]["skipped"] == 1 and "loss" not in lines[1] and lines[3]["cosine"] > -1
    assert f"step 2 of {config.out} is not finite and was left out (1 of at most 1)" in said
    tensors = load_file(config.out / "model" / "image_tower.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())
    (counter,) = {int(v) for name, v in tensors.items() if name.endswith("num_batches_tracked")}
    assert counter == 3, "batch statistics of the step that was left out are left out too"


def test_one_step_more_that_is_not_finite_than_may_be_left_out_ends_the_run_even_after_a_resume(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(config, skip_nonfinite=1)
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped):
        with_spoilt_passes(patch, SECOND)
        distill(asked, should_stop=stop_after(2))
    with monkeypatch.context() as patch, pytest.raises(DivergedError, match=r"step 3 of .*--amend REASON"):
        # A resumed session takes the passes of the last one and measures nothing.
        with_spoilt_passes(patch, 1)
        distill(asked)
    assert distill(asked)["steps"] == 4


def test_without_being_asked_no_step_is_left_out(config: DistillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with_spoilt_passes(monkeypatch, THIRD)
    with pytest.raises(DivergedError, match="step 3 of"):
        distill(config)


def test_the_gradient_that_the_optimizer_gets_has_at_most_the_norm_asked_for(config: DistillConfig) -> None:
    free = first_steps(replace(config, out=config.out.with_name("free")), 1)[0].gradients
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in free.values()]))
    clipped = first_steps(replace(config, clip_grad=norm.item() / 4), 1)[0].gradients
    assert torch.linalg.vector_norm(torch.stack([g.norm() for g in clipped.values()])).item() == pytest.approx(
        norm.item() / 4, rel=1e-4
    )
    loose = replace(config, out=config.out.with_name("loose"), clip_grad=norm.item() * 4)
    for name, gradient in first_steps(loose, 1)[0].gradients.items():
        assert torch.equal(gradient, free[name]), "a smaller gradient stays as it is"
    assert metrics(config)[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4), "logged as it was"


def test_an_amendment_needs_a_run(config: DistillConfig) -> None:
    with pytest.raises(UsageError, match="--amend is for a run that is there"):
        distill(replace(config, amend="too early"))
    assert not (config.out / "run.json").exists()


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_once_and_not_at_the_next_one(
    config: DistillConfig,
) -> None:
    config = replace(config, steps=90, checkpoint_steps=30)
    with pytest.raises(TrainingStopped):
        distill(config, should_stop=stop_after(1))
    (config.out / "checkpoints" / "step-000000030.safetensors").mkdir()
    with pytest.raises(EnvironmentProblem, match=r"step-000000030\.safetensors"):
        distill(config)
    assert 30 <= len(metrics(config)) < 60
