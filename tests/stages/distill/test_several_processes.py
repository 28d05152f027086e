"""Several processes that train together train as one does: the same gradients, order, files, and ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_schema.cache import Cache
from cache_schema.errors import MismatchError, UsageError
from cache_schema.progress import silent
from stages.distill.config import DistillConfig
from stages.distill.gradient_cache import backward_of_batch, groups_of, passes_of
from stages.distill.group import ALONE, Group
from stages.distill.losses import TeacherSide, total_loss
from stages.distill.peers import LostProcess
from stages.distill.resolve import open_feed, open_job
from stages.distill.run import TrainingStopped, distill, distill_side_by_side
from stages.distill.shares import shares_of
from stages.students import build_student, load_image_tower
from tests.corpora.processes import environment, kill_group, wait_for
from tests.corpora.runs import distill_config
from tests.corpora.several_processes import SILENT_SECONDS, Ended, SeveralProcesses
from tests.corpora.small_corpus import small_cache

pytestmark = pytest.mark.slow

STUDENT = "timm:resnet10t?image_size=32&drop=0.1"
BATCH, WIDTH, STEPS, SHOWN_FIRST = 14, 12, 20, 3


@pytest.fixture(scope="module")
def processes() -> Iterator[SeveralProcesses]:
    with SeveralProcesses(3) as several:
        yield several


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(cache: Cache, tmp_path: Path) -> DistillConfig:
    sizes = {"steps": 6, "batch_size": 16, "norm_batch_size": 4, "text_batch_size": 24}
    return distill_config(cache.path, tmp_path / "run", student=STUDENT, logit_scale=20.0, **sizes)


def train_plainly(group: Group) -> dict[str, torch.Tensor]:
    """Returns the gradients of the first steps from the first weights, and the state after steps of plain SGD."""
    student = build_student(STUDENT, WIDTH, seed=0).train()
    groups = len(groups_of(BATCH, 4))
    share = shares_of(BATCH, [4], group.size)[group.rank]
    first_place = [rows.start for rows in groups_of(BATCH, 4)].index(share.start)
    assert groups == 4, "shares of 2 and 3 processes differ in length"
    found = {}

    def gradient(step: int) -> torch.Tensor:
        rng = np.random.default_rng(step)
        pixels = torch.from_numpy(rng.integers(0, 256, (BATCH, *student.preprocess.size, 3), np.uint8))
        teacher = torch.from_numpy(rng.standard_normal((BATCH, WIDTH)).astype(np.float32))
        texts = torch.from_numpy(rng.standard_normal((11, WIDTH)).astype(np.float32))

        def loss(image_BD: torch.Tensor) -> torch.Tensor:
            weights, temperatures = {"vl": 0.5, "pvl": 0.3, "udist": 0.2}, {"vl": 1.0, "pvl": 3.0, "udist": 7.0}
            sides = TeacherSide(teacher, texts)
            return total_loss(image_BD, sides, weights=weights, temperatures=temperatures, logit_scale=4.0)[0]

        student.zero_grad()
        # Steps of one pass and of several take turns.
        backward_of_batch(
            student,
            pixels[share],
            loss,
            passes=passes_of(BATCH, BATCH if step % 2 else 4, 4, share),
            randomness=(5, step),
            precision="float32",
            group=group,
            first_place=first_place,
        )
        gradients = [parameter.grad for parameter in student.parameters()]
        group.sum(gradients)
        return torch.cat([some.flatten() for some in gradients])

    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    for step in range(SHOWN_FIRST):
        found[f"gradient {step}"] = gradient(step)
        for name, buffer in student.named_buffers():
            found[f"{name} after step {step}"] = buffer.clone()
            buffer.copy_(buffers[name])
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
    for step in range(STEPS):
        gradient(step)
        optimizer.step()
    return {**found, "trained": torch.cat([parameter.detach().flatten() for parameter in student.parameters()])}


@pytest.fixture(scope="module")
def of_one() -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    return train_plainly(ALONE)


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_statistics_and_weights_of_several_processes_are_those_of_one(size, processes, of_one):
    of_all = processes.run(size, train_plainly)
    for name, expected in of_one.items():
        found = of_all[0][name]
        assert all(torch.equal(other[name], found) for other in of_all[1:]), f"{name} differs between processes"
        bound = 1e-5 if name == "trained" else 1e-6
        assert (found - expected).double().norm() <= bound * expected.double().norm(), name


def train(group: Group, *configs: DistillConfig, stop: int | None = None, at: int = 0, by: int = 0):
    """Trains in `group`; process `at` wants to stop before step `stop`, or gets the signal `by` there."""
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        due = group.rank == at and stop is not None and asked > stop
        if due and by:
            os.kill(os.getpid(), by)
        return due

    return distill_side_by_side(list(configs), group=group, should_stop=should_stop)


def test_several_students_train_in_several_processes_as_in_one(processes, config):
    other = replace(config, student="timm:mobilenetv3_small_050?image_size=32")
    ours = [replace(config, steps=20), replace(other, steps=12, out=config.out.with_name("other"))]
    results = processes.run(2, train, *ours)
    assert results[0] == results[1] and [result["steps"] for result in results[0]] == [20, 12]
    pixels = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for of_both in ours:
        alone = replace(of_both, out=of_both.out.with_name(f"{of_both.out.name} alone"))
        distill(alone)
        with torch.inference_mode():
            features = [load_image_tower(run.out)(pixels) for run in (of_both, alone)]
        assert (1 - torch.nn.functional.cosine_similarity(*features)).max() < 1e-3
        steps = [json.loads(line)["step"] for line in (of_both.out / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, of_both.steps + 1))


def test_one_that_is_to_stop_stops_all_and_the_run_goes_on_with_another_number_of_processes(processes, config):
    stopped = processes.run(2, train, config, stop=2, at=1)
    assert all(isinstance(error, TrainingStopped) and "stopped at step 2 of 6" in str(error) for error in stopped)
    stopped = processes.run(3, train, config, stop=2, at=2)
    assert all("stopped at step 4 of 6" in str(error) for error in stopped)
    distill(config)
    record = json.loads((config.out / "run.json").read_text())
    assert [session["processes"] for session in record["about"]["sessions"]] == [2, 3, 1]
    metrics = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    whole = replace(config, out=config.out.with_name("whole"))
    distill(whole)
    expected = [json.loads(line) for line in (whole.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert np.allclose([line["loss"] for line in metrics], [line["loss"] for line in expected], rtol=1e-3)


@pytest.mark.parametrize("at", [0, 1])
def test_where_one_is_killed_the_others_end_and_name_it_and_the_run_goes_on_from_its_checkpoint(at, processes, config):
    config = replace(config, checkpoint_steps=1)
    answers = processes.run(3, train, config, stop=4, at=at, by=signal.SIGKILL)
    killed = answers.pop(at)
    assert isinstance(killed, Ended) and killed.args == (-signal.SIGKILL,)
    for error in answers:
        assert isinstance(error, LostProcess) and f"process {at} of 3 (pid " in str(error)
    said = []
    distill(config, notice=said.append)
    assert any("after step 3 of 6" in sentence or "after step 4 of 6" in sentence for sentence in said)
    metrics = [json.loads(line)["step"] for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert metrics == [1, 2, 3, 4, 5, 6]


def test_a_process_that_is_stopped_is_given_up_within_the_stated_time(processes, config):
    started = time.monotonic()
    answers = processes.run(2, train, config, stop=2, at=1, by=signal.SIGSTOP)
    assert isinstance(answers[0], Ended) and answers[0].args == (1,), "it waits in vain, and is ended"
    assert time.monotonic() - started < 2 * SILENT_SECONDS + 30


def test_more_processes_than_groups_are_refused_with_a_size_that_works(processes, config):
    few = replace(config, norm_batch_size=8)
    errors = processes.run(3, train, few)
    assert all(isinstance(error, UsageError) and "2 groups" in str(error) for error in errors)
    assert not few.out.exists(), "nothing was written"
    found = re.search(r"use at most 2 processes, or --norm-batch-size (\d+)", str(errors[0]))
    assert found
    size = int(found[1])
    assert len(groups_of(16, size)) >= 3 > len(groups_of(16, size + 1))


def test_an_error_of_one_process_ends_all_of_them_and_says_whose_it_is(processes, tmp_path):
    cache = small_cache(tmp_path)
    sizes = {"steps": 6, "batch_size": 16, "norm_batch_size": 4, "device": "cpu"}
    config = distill_config(cache.path, tmp_path / "run", student=STUDENT, **sizes)
    sequence = open_feed(config).sequence
    (row,) = sequence.visits_of_step(0).rows[-1:].tolist()
    location = cache.locations(np.array([row]))[0]
    (tmp_path / "pictures" / location.key).with_suffix(".png").write_bytes(b"not a picture any more")
    errors = processes.run(2, train, config)
    assert all(isinstance(error, MismatchError) and location.key in str(error) for error in errors)
    assert "process 1 of 2 (pid " in str(errors[0]) and "process 1 of 2" not in str(errors[1])


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_every_row_of_a_batch_has_one_process_and_groups_are_whole(num_processes):
    for sizes in ([None], [4], [4, None], [4, 8]):
        if sizes == [4, 8] and num_processes == 3:
            continue
        shares = shares_of(16, sizes, num_processes)
        assert [row for share in shares for row in range(share.start, share.stop)] == list(range(16))
        assert len(shares) == num_processes
        for size in filter(None, sizes):
            starts = {rows.start for rows in groups_of(16, size)}
            assert all(share.start in starts for share in shares)


def test_a_share_of_a_batch_is_that_part_of_its_pictures_and_no_other_is_asked_for(config):
    feed = open_feed(config)
    method = open_job(config, feed).method
    shape = open_job(config, feed).student.preprocess.crop_shape
    with feed.open_pictures([shape], num_workers=1, progress=silent) as pictures:
        whole = feed.batch_maker(pictures, method).batch_of_step(3)
        expected = whole.pixels[shape].copy()
    for share in shares_of(16, [4], 3):
        with feed.open_pictures([shape], num_workers=1, progress=silent, of_share=True) as pictures:
            part = feed.batch_maker(pictures, method, share).batch_of_step(3)
            assert np.array_equal(part.pixels[shape], expected[share])
            assert np.array_equal(part.teacher_image_BD, whole.teacher_image_BD)
            assert np.array_equal(part.rows, whole.rows) and np.array_equal(part.text_TD, whole.text_TD)
            assert set(pictures._images) == set(whole.rows[share].tolist()), "decoded its own alone"


def test_torchrun_trains_one_run_and_returns_1_when_a_process_is_killed(config):
    command = ["--cache", config.cache, "--student", STUDENT, "--out", config.out, "--steps", 200, "--device", "cpu"]
    sizes = ["--batch-size", 16, "--norm-batch-size", 4, "--decode-workers", 1, "--checkpoint-steps", 5, "--quiet"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launcher, "-m", "pipeline", "distill", *map(str, [*command, *sizes])]
    started = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(lambda: list(config.out.glob("checkpoints/step-*.json")), started)
        (killed,) = (pid for pid in _children(started.pid) if "RANK=1\0" in Path(f"/proc/{pid}/environ").read_text())
        os.kill(killed, signal.SIGKILL)
        _, said = started.communicate(timeout=90)
    finally:
        kill_group(started)
    assert started.returncode == 1
    assert f"error: process 1 of 2 (pid {killed} on " in said, said
    assert not (config.out / "lock.json").exists()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
