"""The group of this process, as whoever started it says in its environment: torchrun, Ray Train, or a batch system.

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are those of `torch.distributed`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import PrefixStore, TCPStore

from cache_schema.errors import EnvironmentProblem, UsageError
from stages.device import AUTO, this_machine
from stages.distill.config import DistillConfig
from stages.distill.group import Alone, Group, Processes
from stages.distill.peers import SILENT_SECONDS, Peers

WAIT_SECONDS = 1800.0
"""How long a process waits for another one that lives, such as process 0 while it measures or exports."""


@contextmanager
def launched_group(
    *, say: Callable[[str], None], wait_seconds: float = WAIT_SECONDS, silent_seconds: float = SILENT_SECONDS
) -> Iterator[Group]:
    """Context with the group that this process was started for; `Alone` where it was started for none.

    Args:
        say: called with a sentence before this process is ended in the middle of what it waits for.
        wait_seconds: see `WAIT_SECONDS`.
        silent_seconds: how long another process may give no sign of life.

    Raises:
        EnvironmentProblem: the others do not come within `wait_seconds`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Alone()
        return
    rank = int(os.environ["RANK"])
    timeout = timedelta(seconds=wait_seconds)
    begun_here = not distributed.is_initialized()
    try:
        if begun_here:
            store = _store(rank, size, timeout)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        beats = PrefixStore(f"beats {num_starts_before()}", _client(size, timeout))
        host = None if _agent_has_store() else 0
        peers = Peers(beats, rank, size, host=host, say=say, silent_seconds=silent_seconds)
    except RuntimeError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise EnvironmentProblem(
            f"process {rank} of {size} does not find the others at {where} ({' '.join(str(error).split())[:200]}): see "
            "that all of them were started and reach that port (docs/cluster.md)"
        ) from error
    try:
        with peers:
            yield Processes(peers)
    finally:
        if begun_here:
            distributed.destroy_process_group()


def device_of_process(device: str, group: Group) -> str:
    """Returns the device of this process where all processes of `group` are to use `device`.

    Raises:
        UsageError: several processes are given one certain GPU.
    """
    if device == AUTO:
        device = this_machine().device(device).partition(":")[0]
    if group.size == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise UsageError(
            f"{group.size} processes cannot share {device}: use --device cuda, which gives each process a GPU of its "
            "own"
        )
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def going_on(config: DistillConfig) -> DistillConfig:
    """Returns `config` as processes that were started again after a failure follow it: the run itself goes on."""
    return replace(config, fresh=False, amend=None)


def num_starts_before() -> int:
    """Returns how often torchrun started these processes before."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _agent_has_store() -> bool:
    """Returns whether torchrun itself keeps the store, so that it outlives every process."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(rank: int, size: int, timeout: timedelta) -> PrefixStore:
    is_host = rank == 0 and not _agent_has_store()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # Processes that torchrun started again must not find what the earlier ones wrote.
    store = TCPStore(address, port, size, is_host, timeout, wait_for_workers=False, multi_tenant=True)
    return PrefixStore(f"group {num_starts_before()}", store)


def _client(size: int, timeout: timedelta) -> TCPStore:
    """Returns a connection for beats alone: while one process waits in the store, its connection is taken."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, size, False, timeout, wait_for_workers=False)
