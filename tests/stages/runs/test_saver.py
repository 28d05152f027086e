"""Checkpoints are written beside training: of the state at their step, one after the other, and none is lost."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cache_schema.atomic import Fence
from cache_schema.errors import DivergedError, EnvironmentProblem
from stages.runs.checkpoint import checkpoint_steps
from stages.runs.saver import CheckpointSaver


class Gate(Fence):
    """A fence at which writing stops until `opened` is set."""

    opened = threading.Event()

    def check(self) -> None:
        assert self.opened.wait(30)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    Gate.opened = threading.Event()
    yield Gate(tmp_path / "lock.json", "token")
    Gate.opened.set()


@contextmanager
def saver(folder: Path, gate: Fence | None = None, keep: int = 9) -> Iterator[CheckpointSaver]:
    with CheckpointSaver(folder, run="a" * 64, keep=keep, fence=gate) as saver:
        yield saver


def test_a_checkpoint_holds_the_tensors_of_its_step_while_training_goes_on(tmp_path: Path, gate: Gate) -> None:
    weights = torch.arange(4.0)
    with saver(tmp_path) as saving:
        saving._thread.submit(gate.opened.wait, 30)
        saving.save({"weights": weights}, step=1, state={})
        weights += 1
        assert checkpoint_steps(tmp_path) == []
        gate.opened.set()
    assert load_file(tmp_path / "step-000000001.safetensors")["weights"].tolist() == [0, 1, 2, 3]
    assert checkpoint_steps(tmp_path) == [1]


def test_the_next_checkpoint_waits_for_the_one_under_way(tmp_path: Path, gate: Gate) -> None:
    with saver(tmp_path, gate) as saving:
        saving.save({"weights": torch.zeros(2)}, step=1, state={})
        saving.require_well()
        threading.Timer(0.2, gate.opened.set).start()
        saving.save({"weights": torch.ones(2)}, step=2, state={})
        assert gate.opened.is_set() and 1 in checkpoint_steps(tmp_path)
        saving.wait()
        assert checkpoint_steps(tmp_path) == [1, 2]


def test_what_is_to_happen_then_happens_when_the_checkpoint_is_whole(tmp_path: Path) -> None:
    seen = []
    with saver(tmp_path) as saving:
        then = lambda: seen.append(checkpoint_steps(tmp_path))  # noqa: E731
        saving.save({"weights": torch.zeros(2)}, step=3, state={}, then=then)
        saving.wait()
    assert seen == [[3]]


@pytest.mark.parametrize("asking", ["save", "wait", "require_well"])
def test_a_checkpoint_that_cannot_be_written_is_told_to_the_next_who_asks(tmp_path: Path, asking: str) -> None:
    with saver(tmp_path) as saving:
        saving.save({"weights": torch.zeros(2)}, step=1, state={})
        saving.wait()
        (tmp_path / "step-000000002.safetensors").mkdir()
        saving.save({"weights": torch.zeros(2)}, step=2, state={})
        if asking == "require_well":
            saving._thread.submit(int).result()
        asked = {"weights": torch.zeros(2)}
        with pytest.raises(EnvironmentProblem, match="step-000000002"):
            saving.save(asked, step=3, state={}) if asking == "save" else getattr(saving, asking)()
        saving.require_well()
    assert checkpoint_steps(tmp_path) == [1]


def test_a_state_that_is_not_finite_is_told_at_once_and_never_written(tmp_path: Path) -> None:
    with saver(tmp_path) as saving, pytest.raises(DivergedError, match="after step 1 "):
        saving.save({"weights": torch.tensor([1.0, float("nan")])}, step=1, state={})
    assert checkpoint_steps(tmp_path) == []
