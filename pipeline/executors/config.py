"""The configuration of executors. Imports nothing heavy, so that a command line can show it."""

from dataclasses import dataclass

from cache_schema.errors import UsageError
from stages.settings.check import check_settings
from stages.settings.declare import configuration, running

LONGEST_SECONDS = 30 * 24 * 3600

EXECUTORS: dict[str, str] = {
    "auto": "serial; a pool of Ray actors where extract finds several GPUs on this machine",
    "serial": "in this process; opens no socket",
    "ray": "a pool of Ray actors, on this machine unless --ray-address names a cluster",
}


@dataclass(frozen=True)
class WorkerRange:
    """A number of workers that may change: never more than `most`, and not for long fewer than `least`."""

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


@configuration
class ExecutorConfig:
    """The executor of some work, and what it may use. The only home of its defaults; nothing here changes a result.

    Raises:
        UsageError: what is asked contradicts itself.
    """

    name: str = running(
        default="auto",
        flag="--executor",
        choices=tuple(EXECUTORS),
        help="Who does the work.",
        more="See `EXECUTORS`.",
    )
    device: str = running(
        default="cpu",
        flag=None,
        help="Where each worker computes: that of the command.",
        more="auto, cpu, cuda, or cuda:N for the serial executor.",
    )
    ray_address: str | None = running(
        default=None, metavar="HOST:PORT", help="A running Ray cluster.", if_none="its own"
    )
    workers: WorkerRange | None = running(default=None, help="Of Ray.", if_none="one per GPU; 2 on CPU")
    gpus_per_worker: float | None = running(
        default=None, least=0.01, most=1, rare=True, help="Share of a GPU, such as 0.5.", if_none="a whole one"
    )
    cpus_per_worker: int | None = running(
        default=None,
        least=1,
        most=4096,
        rare=True,
        help="CPU threads of a worker.",
        more="And the CPUs that it takes from a cluster; a private one shares the cores of the machine.",
        if_none="an equal share; 1 on a cluster",
    )
    join_seconds: float = running(
        default=300.0, above=0, most=LONGEST_SECONDS, rare=True, help="Go on so long with too few workers."
    )
    stall_seconds: float = running(
        default=1800.0, above=0, most=LONGEST_SECONDS, rare=True, help="Give up on a worker without progress."
    )

    def __post_init__(self) -> None:
        check_settings(self)
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
