"""One process a worker, joined by ``torch.distributed`` with gloo. For trusted networks only: nothing is encrypted.

This first exchange is simple: every process gets every piece (one all-gather a round) and keeps the full model, so all
processes hold the same bits after each round. No pickle crosses the wire: a piece is the bytes of its tensors, in an
order and in shapes that every process derives by itself.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from skerry.runtimes.runtime import Expected, Handover

_ALIGN = 8  # bytes; every tensor starts where any dtype may
_HEADER = 5  # float64: worker, round, loss, flop, local_s


class PeerLost(RuntimeError):
    """Another process ended, or did not answer within the group's timeout."""


class Processes:
    """The runtime of one worker process in an initialized ``torch.distributed`` group.

    Args:
        on_round: called with the round's number when it begins.
    """

    def __init__(self, on_round: Callable[[int], None] = lambda round: None) -> None:
        self.rank = dist.get_rank()
        self.num_processes = dist.get_world_size()
        self.bytes_sent = 0.0
        self._round = 0
        self._buffers: list[Tensor] = []  # own piece, then everybody's; kept, since fresh memory is slow memory
        self._on_round = on_round

    @classmethod
    def join(cls, timeout_s: float = 60.0) -> "Processes":
        """Join the group that torchrun's environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

        Raises:
            ConnectionError: the port is in use or the others cannot be reached.
        """
        try:
            dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
        except (dist.DistError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            what = f"cannot join the group: {said}; check MASTER_ADDR, MASTER_PORT and the network"
            if "EADDRINUSE" in str(error):
                what = "the port is in use; start with torchrun --standalone or another --master-port"
            raise ConnectionError(what) from error
        return cls()

    def mine(self, num_workers: int) -> list[int]:
        """The worker with this process's rank."""
        if num_workers != self.num_processes:
            raise ValueError(f"{num_workers} workers in {self.num_processes} processes: expected one process a worker")
        return [self.rank]

    def begin(self, round: int) -> None:
        """Note that ``round`` begins."""
        self._round = round
        self._on_round(round)

    def exchange(self, mine: list[Handover], expected: Expected, num_workers: int) -> list[Handover]:
        """All-gather the pieces; they are padded to the size of the largest.

        What is returned lies in buffers that the next exchange writes over.
        """
        (own,) = mine
        layouts = [_layout(expected(worker)) for worker in range(num_workers)]
        size = max(end for _, end in layouts)
        if not self._buffers or len(self._buffers[0]) != size:
            self._buffers = [torch.zeros(size, dtype=torch.uint8) for _ in range(num_workers + 1)]
        buffer, *received = self._buffers
        header = torch.tensor([own.worker, own.round, own.loss, own.flop, own.local_s], dtype=torch.float64)
        buffer[: header.nbytes] = header.view(torch.uint8)
        for name, (begin, like) in layouts[self.rank][0].items():
            tensor = own.tensors[name]
            if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
                raise ValueError(
                    f"{name}: this worker made {tensor.dtype} of shape {tuple(tensor.shape)}, expected {like.dtype} of "
                    f"{tuple(like.shape)}"
                )
            flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            buffer[begin : begin + len(flat)] = flat
        with self._peers("exchange"):
            dist.all_gather(received, buffer)
        self.bytes_sent += size * (num_workers - 1)  # in a ring every process passes on all pieces but one
        return [self._unpack(worker, received[worker], layouts[worker][0], own) for worker in range(num_workers)]

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""
        result = tensor.detach().cpu().clone()
        with self._peers("evaluation"):
            dist.all_reduce(result)
        return result.to(tensor.device)

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()

    def _unpack(
        self,
        worker: int,
        buffer: Tensor,
        layout: Mapping[str, tuple[int, Tensor]],
        own: Handover,
    ) -> Handover:
        sender, round, loss, flop, local_s = buffer[: 8 * _HEADER].view(torch.float64).tolist()
        if (sender, round) != (worker, own.round):
            raise PeerLost(
                f"rank {self.rank}, round {own.round}: rank {worker} sent the piece of worker {sender:.0f}, round "
                f"{round:.0f}; start all processes with the same settings and the same checkpoint"
            )
        tensors = {}
        device = next(iter(own.tensors.values())).device
        for name, (begin, like) in layout.items():
            tensors[name] = buffer[begin : begin + like.nbytes].view(like.dtype).view(like.shape).to(device)
        return Handover(worker, own.round, tensors, loss, flop, local_s)

    @contextmanager
    def _peers(self, stage: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise PeerLost(
                f"rank {self.rank}, round {self._round}: lost another process during {stage} "
                f"({str(error).splitlines()[0][:120]})"
            ) from error


def _layout(expected: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, Tensor]], int]:
    """Where each tensor begins in a piece's buffer, and where the buffer ends."""
    begins, end = {}, 8 * _HEADER
    for name, like in expected.items():
        begins[name] = (end, like)
        end += -(-like.nbytes // _ALIGN) * _ALIGN
    return begins, end
