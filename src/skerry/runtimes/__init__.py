"""Where workers run. Algorithms never see it: every runtime gives the round loop the same pieces.

The serial runtime defines the meaning; the others must match it.
"""

from skerry.runtimes.distributed import PeerLost, Processes, WireFormat, WorkerDied, launch
from skerry.runtimes.overlap import BEGAN
from skerry.runtimes.runtime import KEPT, RESTING, Beginning, FullModel, Handover, Report, Runtime, Store
from skerry.runtimes.serial import Serial
from skerry.runtimes.streamed import Streamed

__all__ = [
    "BEGAN",
    "KEPT",
    "RESTING",
    "Beginning",
    "FullModel",
    "Handover",
    "PeerLost",
    "Processes",
    "Report",
    "Runtime",
    "Serial",
    "Store",
    "Streamed",
    "WireFormat",
    "WorkerDied",
    "launch",
]
