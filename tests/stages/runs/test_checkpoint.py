"""A checkpoint is whole or absent; the newest whole one is used and a damaged one is named."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save

from cache_schema import atomic
from cache_schema.errors import DamagedError, DivergedError, MismatchError
from stages.distill.optimizer import make_optimizer
from stages.runs.checkpoint import (
    checkpoint_steps,
    newest_checkpoint,
    read_checkpoint,
    remove_checkpoints,
    restore,
    save_checkpoint,
    tensors_of,
)
from stages.students import build_student
from tests.corpora.damaged_files import DAMAGE
from tests.corpora.resealed import reseal

RUN = "a" * 64


def _training(seed=0, specification="timm:resnet10t?image_size=32", num_steps=2, student=None):
    """A student and optimizer after some steps on noise; convolutions in channels_last, as distill has them."""
    student = student or build_student(specification, 8, seed=seed).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(student, weight_decay=0.05)
    _steps(student, optimizer, range(num_steps))
    return student, optimizer


def _steps(student, optimizer, steps):
    for step in steps:
        pixels = np.random.default_rng([1, step]).standard_normal((4, 3, 32, 32)).astype(np.float32)
        optimizer.zero_grad()
        student(torch.from_numpy(pixels)).square().mean().backward()
        optimizer.step()


def _save(folder, tensors, step, keep=2, run=RUN):
    save_checkpoint(folder, tensors, step=step, run=run, state={"note": step}, keep=keep)


def _newest(folder, notices=None, run=RUN, num_steps=1000):
    return newest_checkpoint(
        folder, run=run, num_steps=num_steps, notice=(notices if notices is not None else []).append
    )


def test_restored_training_continues_bit_for_bit(tmp_path):
    student, optimizer = _training()
    _save(tmp_path, tensors_of(student, optimizer), 2)
    _steps(student, optimizer, range(2, 5))
    resumed, fresh_optimizer = _training(seed=9, num_steps=0)
    restore(resumed, fresh_optimizer, _newest(tmp_path))
    _steps(resumed, fresh_optimizer, range(2, 5))
    expected = tensors_of(student, optimizer)
    found = tensors_of(resumed, fresh_optimizer)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_state_saved_before_the_first_step_can_be_restored(tmp_path):
    student, optimizer = _training(num_steps=0)
    _save(tmp_path, tensors_of(student, optimizer), 0)
    resumed, fresh_optimizer = _training(seed=9, num_steps=0)
    restore(resumed, fresh_optimizer, _newest(tmp_path))
    assert not fresh_optimizer.state
    _steps(student, optimizer, range(2))
    _steps(resumed, fresh_optimizer, range(2))
    assert torch.equal(student.tower.head.proj.weight, resumed.tower.head.proj.weight)


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (3, [2, 3, 4]), (4, [1, 2, 3, 4]), (7, [1, 2, 3, 4])])
def test_as_many_are_kept_as_asked(tmp_path, keep, kept):
    for step in (1, 2, 3, 4):
        _save(tmp_path, {"x": torch.zeros(1)}, step, keep=keep)
    assert sorted(int(path.stem.removeprefix("step-")) for path in tmp_path.glob("*.json")) == kept


def test_only_the_newest_are_kept_and_none_means_none(tmp_path):
    assert _newest(tmp_path / "absent") is None
    for step in (1, 5, 10):
        _save(tmp_path, {"x": torch.full((3,), float(step))}, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000005.json",
        "step-000000005.safetensors",
        "step-000000010.json",
        "step-000000010.safetensors",
    ]
    newest = _newest(tmp_path)
    assert newest.step == 10 and newest.state["note"] == 10 and newest.tensors["x"].tolist() == [10.0] * 3


def test_one_further_step_is_kept_beside_the_newest_for_as_long_as_it_is_asked_for(tmp_path):
    for step in range(1, 6):
        save_checkpoint(
            tmp_path, {"x": torch.ones(2)}, step=step, run=RUN, state={}, keep=2, also=frozenset({min(step, 2)})
        )
    assert checkpoint_steps(tmp_path) == [2, 4, 5]
    assert read_checkpoint(tmp_path, 2).step == 2 and _newest(tmp_path).step == 5
    # One that is among the newest takes nobody's place, and one that is not there is not missed.
    remove_checkpoints(tmp_path, keep=2, also=frozenset({5, 3}))
    assert checkpoint_steps(tmp_path) == [4, 5]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, suffix, how):
    for step in (1, 2):
        _save(tmp_path, {"x": torch.arange(5.0) + step}, step)
    DAMAGE[how](tmp_path / f"step-000000002.{suffix}")
    notices = []
    assert _newest(tmp_path, notices).step == 1
    if (suffix, how) != ("json", "deleted"):  # without its state file a checkpoint was never finished
        assert len(notices) == 1 and "step-000000002" in notices[0] and "going on from step 1" in notices[0]


@pytest.mark.parametrize("name", ["model.weight", "exp_avg.weight", "exp_avg_sq.weight", "model.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_checkpoint_with_a_value_that_is_not_finite_is_refused_by_name_and_the_one_before_is_used(
    tmp_path, name, value
):
    for step in (1, 2):
        _save(tmp_path, {name: torch.ones(3, 2), "other": torch.arange(2)}, step)
    spoilt = save({name: torch.tensor([[1.0, 2.0], [value, 3.0]]), "other": torch.arange(2)})
    (tmp_path / "step-000000002.safetensors").write_bytes(spoilt)
    sizes = {"sha256": hashlib.sha256(spoilt).hexdigest(), "size_bytes": len(spoilt)}
    reseal(tmp_path / "step-000000002.json", tensors=sizes)
    notices = []
    assert _newest(tmp_path, notices).step == 1
    assert f"step-000000002.safetensors holds values that are not finite (1 tensors: {name})" in notices[0]
    (tmp_path / "step-000000001.json").unlink()
    with pytest.raises(DamagedError, match=r"not finite .*start over with --fresh"):
        _newest(tmp_path)


def test_a_state_with_a_value_that_is_not_finite_is_never_saved_and_the_checkpoint_before_stays(tmp_path):
    _save(tmp_path, {"x": torch.ones(2)}, 1, keep=1)
    with pytest.raises(DivergedError, match=r"after step 2 of .* is not finite \(1 tensors: x\): the last checkpoint"):
        _save(tmp_path, {"x": torch.tensor([1.0, float("nan")]), "count": torch.arange(2)}, 2, keep=1)
    assert _newest(tmp_path).step == 1 and len(list(tmp_path.iterdir())) == 2


def test_when_all_are_damaged_the_run_stops_and_names_them(tmp_path):
    _save(tmp_path, {"x": torch.zeros(2)}, 1)
    DAMAGE["half"](tmp_path / "step-000000001.safetensors")
    with pytest.raises(DamagedError, match=r"step-000000001\.safetensors is damaged.*--fresh"):
        _newest(tmp_path)


def test_a_checkpoint_of_another_run_or_beyond_its_end_is_refused(tmp_path):
    _save(tmp_path, {"x": torch.zeros(2)}, 7)
    with pytest.raises(MismatchError, match="belongs to run aaaaaaaaaaaa, this one is bbbbbbbbbbbb"):
        _newest(tmp_path, run="b" * 64)
    with pytest.raises(MismatchError, match="at step 7 of a run of 6"):
        _newest(tmp_path, num_steps=6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("exp_avg.tower.head.proj.weight"), r"missing exp_avg\.tower\.head\.proj\.weight"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected extra"),
        (
            lambda tensors: tensors.update({"model.tower.head.proj.weight": torch.zeros(3, 3)}),
            r"\(3, 3\) instead of torch.float32 \(8, 512\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed_and_nothing_is_changed(tmp_path, change, message):
    student, optimizer = _training()
    tensors = tensors_of(student, optimizer)
    change(tensors)
    _save(tmp_path, tensors, 2)
    other, other_optimizer = _training(seed=3, num_steps=0)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(MismatchError, match=message):
        restore(other, other_optimizer, _newest(tmp_path))
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())


class _Stopped(Exception):
    pass


def test_a_crash_before_any_file_operation_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    for fail_at in range(1, 30):
        folder = tmp_path / str(fail_at)
        for step in (1, 2):
            _save(folder, {"x": torch.full((4,), float(step))}, step)
        count = 0

        def crash_at(original, fail_at=fail_at):
            def operation(*args, **kwargs):
                nonlocal count
                count += 1
                if count == fail_at:
                    raise _Stopped
                return original(*args, **kwargs)

            return operation

        with monkeypatch.context() as patched:
            patched.setattr(atomic, "_fsync", crash_at(atomic._fsync))
            patched.setattr(os, "replace", crash_at(os.replace))
            patched.setattr(os, "unlink", crash_at(os.unlink))
            try:
                _save(folder, {"x": torch.full((4,), 3.0)}, 3)
                finished = True
            except _Stopped:
                finished = False
        newest = _newest(folder)
        assert newest.tensors["x"].tolist() == [float(newest.step)] * 4
        assert newest.step in (2, 3)
        if finished:
            assert newest.step == 3
            return
    pytest.fail("saving never finished")


def test_checkpoints_hold_no_pickle(tmp_path):
    _save(tmp_path, {"x": torch.zeros(2)}, 1)
    header = (tmp_path / "step-000000001.safetensors").read_bytes()[8:]
    assert header.startswith(b"{")
    code = (
        "import pickle, sys; pickle.Unpickler = pickle.load = pickle.loads = None\n"
        "from pathlib import Path; from stages.runs.checkpoint import newest_checkpoint\n"
        f"assert newest_checkpoint(Path(sys.argv[1]), run='{RUN}', num_steps=9, notice=print).step == 1"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
