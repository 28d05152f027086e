"""The same work on Ray actors.

Errors of the work itself come back as values from `executors.base.attempt`, which runs inside the actor. Only what
Ray reports about its own processes (an actor died, a node was lost) is tried again, on a fresh actor and a bounded
number of times. Results are small reports; anything large is on disk before an actor answers.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

from cache_schema.errors import EnvironmentProblem
from pipeline.executors.base import Outcome, Peeked, Result, Task
from pipeline.executors.config import ExecutorConfig, WorkerRange
from pipeline.executors.gpus import idle_in_cluster
from pipeline.executors.ray_cluster import connected, num_gpus_of, resources
from pipeline.executors.ray_pool import Pool, PoolConfig
from pipeline.output import print_note

MAX_CPU_WORKERS = 2


class RayExecutor:
    """Runs tasks in a pool of Ray actors. See `pipeline.executors.base.Executor`; outcomes come as they are ready.

    Nothing is started before there is a task.
    """

    def __init__(self, config: ExecutorConfig, *, notice: Callable[[str], None] = print_note) -> None:
        self._config = config
        self._notice = notice
        self._is_private = config.ray_address is None

    def map(
        self, make_worker: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task]
    ) -> Iterator[Outcome[Task, Result]]:
        """See `Executor.map`.

        Raises:
            EnvironmentProblem: also when the cluster cannot be used or has too little for the least workers.
        """
        remaining = iter(tasks)
        asked = self._config.workers
        for first in remaining:
            num_cpus = max(asked.most if asked else 0, os.cpu_count() or 1)
            with connected(self._config.ray_address, num_cpus=num_cpus) as ray:
                pool: Pool[Task, Result] = Pool(ray, make_worker, self._pool_config(ray))
                try:
                    yield from pool.run(Peeked(first, remaining))
                finally:
                    pool.close()

    def _pool_config(self, ray: ModuleType) -> PoolConfig:
        workers = self._sized(ray)
        threads = self._config.cpus_per_worker or self._default_threads(workers)
        # On a cluster of ours CPUs are mere slots; on another one they are what others go without.
        slots = threads if not self._is_private else 0 if self._config.uses_gpu else 1
        return PoolConfig(
            workers=workers,
            actor_options={
                "num_cpus": slots,
                "num_gpus": self._gpu_share,
                "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
            },
            join_seconds=self._config.join_seconds,
            stall_seconds=self._config.stall_seconds,
            names_nodes=not self._is_private,
            notice=self._notice_lines,
        )

    @property
    def _gpu_share(self) -> float:
        return (self._config.gpus_per_worker or 1.0) if self._config.uses_gpu else 0.0

    def _default_threads(self, workers: WorkerRange) -> int:
        return max(1, (os.cpu_count() or 1) // workers.most) if self._is_private else 1

    def _sized(self, ray: ModuleType) -> WorkerRange:
        """Returns how many workers there are to be.

        Raises:
            EnvironmentProblem: there is too little for the least of them, and no node can come later.
        """
        asked = self._config.workers
        if not self._config.uses_gpu:
            if not self._is_private and (remark := idle_in_cluster(num_gpus_of(ray))):
                self._notice(remark)
            default = min(MAX_CPU_WORKERS, os.cpu_count() or 1) if self._is_private else MAX_CPU_WORKERS
            return asked or WorkerRange(1, default)
        room = num_gpus_of(ray) * int(1 / self._gpu_share + 1e-6)
        least = asked.least if asked else 1
        # Nodes may join a cluster of the user's, but only one who says how many workers there will be waits for them.
        if room < least and (self._is_private or asked is None):
            share = "" if self._gpu_share == 1 else f" (workers with {self._gpu_share:g} of one)"
            raise EnvironmentProblem(
                f"{least} GPUs are asked for{share}, Ray has {resources(ray)}: lower --workers, add nodes, or use "
                "--device cpu"
            )
        return asked or WorkerRange(1, room)

    def _notice_lines(self, text: str) -> None:
        for line in text.splitlines():
            self._notice(line)
