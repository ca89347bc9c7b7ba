"""The wire: sends parts of tensors to other processes and receives theirs, in messages of bounded size.

For each pair of processes there is one stream of parts, in an order that both derive by themselves. It is divided into
messages of bounded size. While a message is being sent, the next one is packed and the last one unpacked. No pickle and
no shapes are sent: a message is the bytes of its parts. (gloo ends the receiver's process group if a message is larger
than the receiver expects.)

Tensors on a device are packed there, and a message is copied as a whole to or from memory of the host, which is pinned
for CUDA. Processes of a run may have different devices.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from skerry.exchange.moves import Move
from skerry.exchange.routes import Transfer
from skerry.subnet.index import Cut, Index, cut_shape

WireFormat = Literal["exact", "bf16"]

CPU = torch.device("cpu")

IN_CACHE = 2**20  # bytes that are read from a tensor at a time
_MESSAGE = 2**22  # the most bytes of a message
_ALIGN = 16  # bytes; every part starts at a multiple, which suits any dtype


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """A part of a transfer that fits into a message: ``cut`` of ``move.name``, sent as ``dtype``."""

    move: Move
    cut: Cut
    shape: torch.Size
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in a message, with padding."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // _ALIGN) * _ALIGN


def wire_dtype(dtype: torch.dtype, wire: WireFormat) -> torch.dtype:
    """Return the dtype in which elements of ``dtype`` are sent."""
    return torch.bfloat16 if wire == "bf16" and dtype == torch.float32 else dtype


def split(cut: Cut, shape: torch.Size, most: int) -> Iterable[Cut]:
    """Divide a cut of a tensor of ``shape`` into cuts of at most ``most`` elements (at least one)."""
    counts = cut_shape(shape, cut)
    total = counts.numel()
    if total <= most or total <= 1:
        if total:
            yield cut
        return
    dim = next(d for d, count in enumerate(counts) if count > 1)  # rows first: their elements are neighbours
    index = cut[dim] or Index.run(0, counts[dim])
    for part in index.split(min(counts[dim], -(-total // most))):
        yield from split((*cut[:dim], part, *cut[dim + 1 :]), shape, most)


def parts(transfer: Transfer, size: Tensor, wire: WireFormat, chunk: int) -> Iterable[Part]:
    """Divide a transfer into parts.

    Args:
        transfer: what is sent.
        size: a tensor of the full size and dtype, on the meta device.
        wire: how floats are sent.
        chunk: the most bytes of a message; a part also fits into a cache.
    """
    dtype = wire_dtype(size.dtype, wire)
    for cut in split(transfer.cut, size.shape, max(1, min(chunk, IN_CACHE) // dtype.itemsize)):
        yield Part(transfer.move, cut, cut_shape(size.shape, cut), dtype)


def messages(stream: Iterable[Part], chunk: int) -> list[list[Part]]:
    """Pack a stream of parts into messages of at most ``chunk`` bytes (or of one part)."""
    packed: list[list[Part]] = []
    room = 0
    for part in stream:
        if part.num_bytes > room:
            packed.append([])
            room = chunk
        packed[-1].append(part)
        room -= part.num_bytes
    return packed


def num_bytes(message: Sequence[Part]) -> int:
    """Return the size of a message."""
    return sum(part.num_bytes for part in message)


class Wire:
    """Sends and receives, with buffers that are used again in every round.

    Args:
        num_processes: in the group.
        guard: a context manager around waiting for others, which reports who was lost.
        budget: the most bytes that all buffers take.
        group: the process group, None for the default one.

    Attributes:
        chunk: the most bytes of a message.
        bytes_sent: in all messages so far.
    """

    def __init__(
        self,
        num_processes: int,
        guard: Callable[[], AbstractContextManager[None]],
        budget: int = 64 * 2**20,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._guard, self._group = guard, group
        # Two buffers per peer and direction: one is being sent while the other is packed or unpacked.
        self.chunk = max(_ALIGN, min(_MESSAGE, budget // (4 * max(1, num_processes - 1))) // _ALIGN * _ALIGN)
        self.bytes_sent = 0
        self._buffers: dict[tuple[str, int, int], Tensor] = {}
        self._on_device: Tensor | None = None  # one message is packed or unpacked at a time

    @property
    def buffer_bytes(self) -> int:
        """Bytes that the buffers take now."""
        return sum(len(buffer) for buffer in self._buffers.values())

    def run(
        self,
        sends: Mapping[int, Sequence[Sequence[Part]]],
        receives: Mapping[int, Sequence[Sequence[Part]]],
        read: Callable[[Part], Tensor],
        write: Callable[[int, Part, Tensor], None],
        meanwhile: Callable[[], None] = lambda: None,
        device: torch.device = CPU,
    ) -> None:
        """Send and receive all messages.

        Args:
            sends: the messages for each peer.
            receives: the messages from each peer.
            read: returns the values of a part that is sent.
            write: takes (peer, part, values received); the values are valid during the call only.
            meanwhile: called once, while the first messages are being sent.
            device: where messages are packed and unpacked.
        """
        waves = max((len(m) for m in [*sends.values(), *receives.values()]), default=0)
        coming: list[tuple[int, Sequence[Part], Tensor, Any]] = []
        going: list[Any] = []
        for k in range(waves + 1):
            next_coming = [(p, m[k], *self._receive(p, k, m[k], device)) for p, m in receives.items() if k < len(m)]
            next_going = [self._send(p, k, m[k], read, device) for p, m in sends.items() if k < len(m)]
            if k == min(1, waves):
                meanwhile()
            for peer, message, buffer, work in coming:
                with self._guard():
                    work.wait()
                if device.type != "cpu":
                    buffer = self._place(device, len(buffer)).copy_(buffer)
                at = 0
                for part in message:
                    end = at + math.prod(part.shape) * part.dtype.itemsize
                    write(peer, part, buffer[at:end].view(part.dtype).view(part.shape))
                    at += part.num_bytes
            with self._guard():
                for work in going:
                    work.wait()
            coming, going = next_coming, next_going

    def _receive(self, peer: int, k: int, message: Sequence[Part], device: torch.device) -> tuple[Tensor, Any]:
        buffer = self._buffer("receive", peer, k, num_bytes(message), device)
        with self._guard():
            return buffer, self.irecv(buffer, peer)

    def _send(
        self, peer: int, k: int, message: Sequence[Part], read: Callable[[Part], Tensor], device: torch.device
    ) -> Any:
        buffer = self._buffer("send", peer, k, num_bytes(message), device)
        place = buffer if device.type == "cpu" else self._place(device, len(buffer))
        at = 0
        for part in message:
            flat = read(part).to(part.dtype).contiguous().view(-1).view(torch.uint8)
            place[at : at + len(flat)] = flat
            at += part.num_bytes
        if place is not buffer:
            buffer.copy_(place)
        self.bytes_sent += len(buffer)
        with self._guard():
            return self.isend(buffer, peer)

    def irecv(self, buffer: Tensor, peer: int) -> Any:
        """Start to receive from ``peer``."""
        return dist.irecv(buffer, peer, group=self._group)

    def isend(self, buffer: Tensor, peer: int) -> Any:
        """Start to send to ``peer``."""
        return dist.isend(buffer, peer, group=self._group)

    def _buffer(self, way: str, peer: int, k: int, size: int, device: torch.device) -> Tensor:
        key = (way, peer, k % 2)
        if key not in self._buffers or len(self._buffers[key]) < size:
            self._buffers[key] = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        return self._buffers[key][:size]

    def _place(self, device: torch.device, size: int) -> Tensor:
        """Return ``size`` bytes on ``device``."""
        if self._on_device is None or len(self._on_device) < size:
            self._on_device = torch.empty(size, dtype=torch.uint8, device=device)
        return self._on_device[:size]
