"""Runtimes: where workers run. Algorithms never see it; every runtime gives the round loop the same results.

``runtime.py`` has the interface. ``serial.py`` runs all workers in one process and defines the meaning; the others
match it. ``distributed`` runs one process per worker, and ``elastic`` lets these come and go; ``peers.py`` is what both
share. ``streamed.py`` is a full model that no process holds, and ``overlap.py`` says what may be averaged while workers
train on.
"""

from skerry.runtimes.distributed import PeerLost, Processes, WireFormat, WorkerDied, launch
from skerry.runtimes.elastic import Elastic, TooFew, serve_store
from skerry.runtimes.runtime import FullModel, Report, Runtime, Store
from skerry.runtimes.serial import Serial

__all__ = [
    "Elastic", "FullModel", "PeerLost", "Processes", "Report", "Runtime", "Serial", "Store", "TooFew", "WireFormat",
    "WorkerDied", "launch", "serve_store",
]  # fmt: skip
