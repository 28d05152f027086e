"""Several processes that train together train as one does: the same gradients, order, files, and ends."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_schema.cache import Cache
from stages.distill.config import DistillConfig
from stages.distill.gradient_cache import backward_of_batch, groups_of, passes_of
from stages.distill.group import ALONE, Group
from stages.distill.losses import TeacherSide, total_loss
from stages.distill.peers import LostProcess
from stages.distill.run import TrainingStopped, distill, distill_side_by_side
from stages.distill.shares import shares_of
from stages.students import build_student, load_image_tower
from tests.corpora.runs import distill_config
from tests.corpora.several_processes import Ended, SeveralProcesses
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


def train(group: Group, *configs: DistillConfig, stop: int | None = None, at: int = 0, kill: bool = False):
    """Trains in `group`; process `at` wants to stop before step `stop`, or is killed there."""
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        due = group.rank == at and stop is not None and asked > stop
        if due and kill:
            os.kill(os.getpid(), signal.SIGKILL)
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
    answers = processes.run(3, train, config, stop=4, at=at, kill=True)
    killed = answers.pop(at)
    assert isinstance(killed, Ended) and killed.args == (-signal.SIGKILL,)
    for error in answers:
        assert isinstance(error, LostProcess) and f"process {at} of 3 (pid " in str(error)
    said = []
    distill(config, notice=said.append)
    assert any("after step 3 of 6" in sentence or "after step 4 of 6" in sentence for sentence in said)
    metrics = [json.loads(line)["step"] for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert metrics == [1, 2, 3, 4, 5, 6]
