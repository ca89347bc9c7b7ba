"""One process per worker, joined by ``torch.distributed``. No process holds the full model.

``processes.py`` is the runtime, ``launch.py`` starts it on one machine, and ``liveness.py`` finds lost processes.
``sharded.py`` is the store: ``shard.py`` what a process stores, ``storage.py`` how that is indexed, ``reuse.py`` the
memory that is written over. One exchange is in ``local_exchange.py``, a group of tensors at a time
(``tensor_groups.py``), over ``wire.py``.
"""

from skerry.runtimes.distributed.launch import WorkerDied, launch
from skerry.runtimes.distributed.meeting import PeerLost
from skerry.runtimes.distributed.processes import Processes
from skerry.runtimes.distributed.wire import WireFormat

__all__ = ["PeerLost", "Processes", "WireFormat", "WorkerDied", "launch"]
