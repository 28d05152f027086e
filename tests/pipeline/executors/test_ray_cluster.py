"""A private cluster lets nobody in who has no token; another one is asked for what it has."""

from types import ModuleType
from typing import Any

import pytest

from cache_schema.errors import EnvironmentProblem
from pipeline.executors.config import ExecutorConfig, WorkerRange
from pipeline.executors.ray_executor import RayExecutor
from tests.pipeline.executors import workers

pytestmark = pytest.mark.usefixtures("ray_cluster")


def on_ray(num_workers: int, **settings: Any) -> RayExecutor:
    return RayExecutor(ExecutorConfig(name="ray", workers=WorkerRange(num_workers, num_workers), **settings))


def test_private_cluster_asks_for_a_token_and_has_no_dashboard(ray_cluster: ModuleType) -> None:
    from ray._raylet import AuthenticationMode, get_authentication_mode

    assert get_authentication_mode() == AuthenticationMode.TOKEN
    assert not ray_cluster._private.worker.global_worker.node.webui_url


def test_absent_gpu_is_an_error_that_says_what_there_is(ray_cluster: ModuleType) -> None:
    num_gpus = int(ray_cluster.cluster_resources().get("GPU", 0))
    with pytest.raises(EnvironmentProblem, match=f"{num_gpus + 1} GPUs are asked for, Ray has {num_gpus}"):
        list(on_ray(num_gpus + 1, device="cuda").map(workers.make_double, range(3)))
