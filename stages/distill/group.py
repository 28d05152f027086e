"""The processes that train together, or one process alone: what they hand to each other, and what they agree on.

The training loop is the same for both. Who starts processes (torchrun, Ray Train) makes a `Group` and nothing else.
"""

import json
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import torch
from torch import Tensor, distributed

from cache_schema import errors
from cache_schema.errors import EnvironmentProblem, PipelineError
from cache_schema.json_file import Json
from stages.device import is_out_of_memory
from stages.distill.peers import LostProcess, Peers

# Tensors that are summed at once; one call for each would cost more than the bytes.
_BYTES_AT_ONCE = 64 << 20
_WELL, _FLAGGED, _SHORT, _FAILED = range(4)


class Group(ABC):
    """Processes that hold the same weights and take the same steps, each with its share of every batch.

    Every process calls the same methods in the same order.

    Attributes:
        rank: of this process, from 0; process 0 owns lock, log, checkpoints and exports.
        size: how many processes there are.
        num_here: how many of them share this machine.
    """

    rank: int
    size: int
    num_here: int

    @property
    def leads(self) -> bool:
        """Returns whether this is the process that writes and speaks."""
        return self.rank == 0

    @abstractmethod
    def gather(self, rows: Tensor) -> Tensor:
        """Returns the rows of all processes, in the order of their ranks; only the number of rows may differ."""

    @abstractmethod
    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over all processes in place of every one of `tensors`; all processes get the same bits."""

    @abstractmethod
    def collect(self, value: Json) -> list[Json]:
        """Returns the JSON `value` of every process, in the order of their ranks."""

    def broadcast(self, value: Json) -> Json:
        """Returns the JSON `value` of process 0."""
        return self.collect(value if self.leads else None)[0]

    @abstractmethod
    def agree(self, error: Exception | None = None, *, flag: bool = False) -> bool:
        """Returns whether any process has `flag`; where any has an `error`, raises one in all of them.

        Args:
            error: a `PipelineError`, or one that says that memory is short. A process that has none raises that of
                another one, which says whose it is.
            flag: what this process wants, or saw.
        """

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Context that ends alike in all processes: with an error in each where any of them had one.

        Only for errors that `agree` takes. Inside, processes have nothing to do with each other.
        """
        error: Exception | None = None
        try:
            yield
        except (PipelineError, RuntimeError, MemoryError) as raised:
            if isinstance(raised, LostProcess) or not (isinstance(raised, PipelineError) or is_out_of_memory(raised)):
                raise
            error = raised
        self.agree(error)


class Alone(Group):
    """The only process."""

    rank, size, num_here = 0, 1, 1

    def gather(self, rows: Tensor) -> Tensor:
        return rows

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Leaves `tensors` as they are: they are the sum over one process."""

    def collect(self, value: Json) -> list[Json]:
        return [value]

    def agree(self, error: Exception | None = None, *, flag: bool = False) -> bool:
        if error is not None:
            raise error
        return flag


ALONE = Alone()


class Processes(Group):
    """The processes of `torch.distributed`, whose default process group is there: gloo on the CPU, NCCL on GPUs.

    What is agreed on goes over gloo, so that no process waits for a GPU to learn that another one is gone.

    Args:
        peers: what knows which processes live.

    Raises:
        LostProcess: by every method, when another process is gone.
    """

    def __init__(self, peers: Peers) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self._peers = peers
        hosts = self.collect(socket.gethostname())
        self.num_here = hosts.count(hosts[self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        return torch.cat(self._parts(rows))

    def sum(self, tensors: Sequence[Tensor]) -> None:
        for some in _in_buckets(tensors):
            joined = torch.cat([tensor.reshape(-1) for tensor in some])
            with self._named():
                distributed.all_reduce(joined)
            ends = [0, *accumulate(tensor.numel() for tensor in some)]
            for tensor, (start, end) in zip(some, pairwise(ends), strict=True):
                tensor.copy_(joined[start:end].view_as(tensor))

    def collect(self, value: Json) -> list[Json]:
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(part.numpy().tobytes()) for part in self._parts(data)]

    def agree(self, error: Exception | None = None, *, flag: bool = False) -> bool:
        state = _FLAGGED if flag else _WELL
        if error is not None:
            state = _FAILED if isinstance(error, PipelineError) else _SHORT
        states = self._integers(state)
        worst = max(states)
        if worst in (_WELL, _FLAGGED):
            return worst == _FLAGGED
        said = self.collect(None if error is None else [type(error).__name__, str(error)])
        if state == worst:
            assert error is not None
            raise error
        place = states.index(worst)
        kind, message = said[place]
        where = f"{self._peers.name_of(place)}: {message}"
        if worst == _SHORT:
            raise MemoryError(where)
        raise getattr(errors, kind, EnvironmentProblem)(where)

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Returns the rows of every process; all are sent as many as the longest has."""
        lengths = self._integers(len(rows))
        padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
        padded[: len(rows)] = rows
        found = padded.new_empty((self.size, *padded.shape))
        with self._named():
            distributed.all_gather(list(found), padded)
        return [part[:length] for part, length in zip(found, lengths, strict=True)]

    def _integers(self, value: int) -> list[int]:
        found = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self._named():
            distributed.all_gather(found, torch.tensor([value]))
        return [int(number) for number in found]

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Context in which what torch says about a lost connection becomes the name of the process that is gone."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise self._peers.lost(error) from error


def _in_buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        if bucket and held + tensor.nbytes > _BYTES_AT_ONCE:
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.nbytes
    if bucket:
        yield bucket
