"""One process per worker, joined by torch.distributed; no process holds the full model."""

from skerry.runtimes.distributed.launch import WorkerDied, launch
from skerry.runtimes.distributed.processes import PeerLost, Processes
from skerry.runtimes.distributed.wire import WireFormat

__all__ = [
    "PeerLost",
    "Processes",
    "WireFormat",
    "WorkerDied",
    "launch",
]
