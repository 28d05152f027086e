"""Who runs the parts of an extract, and with what. Imports nothing heavy, so that a command line can show it."""

from dataclasses import dataclass

from cache_schema.errors import UsageError, unknown_name

EXECUTORS: dict[str, str] = {
    "serial": "in this process; opens no socket",
    "ray": "a pool of Ray actors, on this machine unless --ray-address names a cluster",
}


@dataclass(frozen=True)
class WorkerRange:
    """How many workers a run has: never more than `most`, and not for long fewer than `least`."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UsageError(f"{self.least}:{self.most} workers cannot be: give MIN:MAX with 1 or more, MIN first")

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}:{self.most}"

    @property
    def is_elastic(self) -> bool:
        return self.least < self.most


@dataclass(frozen=True)
class ExecutorConfig:
    """How parts are run. The only home of its defaults; nothing here changes a feature.

    Attributes:
        name: one of `EXECUTORS`.
        device: where each worker computes: cpu, cuda, or cuda:N for the serial executor.
        ray_address: HOST:PORT of a running cluster; None starts a private one on this machine.
        workers: of the ray executor; None means one per GPU share, or up to two on CPU.
        gpus_per_worker: share of a GPU that a worker gets; None means a whole one.
        cpus_per_worker: CPU threads of a worker, and the CPUs it takes from a cluster; None means an equal share of the
            cores on a private cluster, and one on another.
        join_seconds: how long a run goes on with fewer workers than the least.
        stall_seconds: how long a worker may be without progress.

    Raises:
        UsageError: what is asked contradicts itself.
    """

    name: str = "serial"
    device: str = "cpu"
    ray_address: str | None = None
    workers: WorkerRange | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: int | None = None
    join_seconds: float = 300.0
    stall_seconds: float = 1800.0

    def __post_init__(self) -> None:
        if self.name not in EXECUTORS:
            raise unknown_name("executor", self.name, EXECUTORS)
        if self.name == "ray":
            self._check_ray()
            return
        for option in ("workers", "gpus_per_worker", "cpus_per_worker"):
            value = getattr(self, option)
            if value is not None:
                flag = f"--{option.replace('_', '-')}"
                raise UsageError(
                    f"{flag} {value} is for --executor ray; the serial executor has one worker: add it or drop this"
                )

    def _check_ray(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise UsageError(
                f"--executor ray gives each worker a GPU of its own, so it cannot take {self.device!r}: "
                "use --device cuda"
            )
        if self.gpus_per_worker is not None and self.device == "cpu":
            raise UsageError(
                f"--gpus-per-worker {self.gpus_per_worker:g} contradicts --device cpu: add --device cuda or drop it"
            )

    @property
    def uses_gpu(self) -> bool:
        return self.device != "cpu"
