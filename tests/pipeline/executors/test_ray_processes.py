"""Several workers of Ray Train train one run, and go on from its checkpoint when one of them is killed."""

import importlib.util
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.errors import EnvironmentProblem, UsageError
from pipeline.executors.config import ExecutorConfig, WorkerRange
from pipeline.executors.ray_processes import distill_in_ray_processes
from stages.distill.config import DistillConfig
from tests.corpora.runs import distill_config
from tests.corpora.small_corpus import small_cache

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

TWO = ExecutorConfig(name="ray", workers=WorkerRange(2, 2))


def has_ray_train() -> bool:
    # Looked for, not imported: Ray takes its settings when it is imported, and the cluster of the tests has others.
    return all(importlib.util.find_spec(name) for name in ("pandas", "pydantic", "tensorboardX"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    folder = tmp_path_factory.mktemp("train")
    small_cache(folder)
    sizes = {"steps": 40, "batch_size": 8, "norm_batch_size": 4, "checkpoint_steps": 1}
    return distill_config(folder / "cache", folder / "run", device="cpu", **sizes)


def train(config: DistillConfig, executor: ExecutorConfig = TWO, progress=lambda *_: None, said=None) -> dict:
    notice = (said if said is not None else []).append
    (result,) = distill_in_ray_processes(
        [config], executor=executor, progress=progress, notice=notice, should_stop=lambda: False
    )
    return result


def workers_of_ours() -> list[int]:
    """Returns the pids of the workers of Ray Train in the cluster that this process started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if "RayTrainWorker" in (folder / "cmdline").read_text() and os.getpid() in _ancestors(int(folder.name)):
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return sorted(found)


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


@pytest.mark.skipif(not has_ray_train(), reason="the extra `train` is not installed")
def test_a_killed_worker_costs_no_step_and_repeats_none(config: DistillConfig) -> None:
    killed = []

    def progress(done: int, total: int, unit: str, note: str = "") -> None:
        if unit == "steps" and done >= 3 and not killed:
            killed.append(workers_of_ours()[-1])
            os.kill(killed[0], signal.SIGKILL)

    said: list[str] = []
    result = train(replace(config, fresh=True), progress=progress, said=said)
    assert killed and any("resuming" in sentence for sentence in said)
    assert result["steps"] == 40
    steps = [json.loads(line)["step"] for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))


def test_without_ray_train_the_error_says_how_to_install_it(config: DistillConfig) -> None:
    if has_ray_train():
        pytest.skip("the extra `train` is installed")
    with pytest.raises(EnvironmentProblem, match=r"pip install 'vlm-distill\[train\]'"):
        train(config)


def test_workers_that_may_change_are_refused(config: DistillConfig) -> None:
    with pytest.raises(UsageError, match="--workers 2:3 may change"):
        train(config, replace(TWO, workers=WorkerRange(2, 3)))
