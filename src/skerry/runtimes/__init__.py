"""Runtimes: where workers run. Algorithms never see it; every runtime gives the round loop the same results.

``runtime.py`` has the interface. ``serial.py`` runs all workers in one process and defines the meaning; the others
match it. ``distributed`` runs one process per worker. ``streamed.py`` is a full model that no process holds, and
``overlap.py`` says what may be averaged while workers train on.
"""

from skerry.runtimes.distributed import PeerLost, Processes, WireFormat, WorkerDied, launch
from skerry.runtimes.runtime import FullModel, Report, Runtime, Store
from skerry.runtimes.serial import Serial

__all__ = [
    "FullModel", "PeerLost", "Processes", "Report", "Runtime", "Serial", "Store", "WireFormat", "WorkerDied",
    "launch",
]  # fmt: skip
