"""Saving a checkpoint: every process writes its file, then the first one replaces the index in one step.

So a kill at any instant leaves the latest complete set.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from torch import Tensor

from skerry.checkpoint import layout
from skerry.checkpoint.state import State
from skerry.files import atomic
from skerry.files.tensor_file import save_tensors
from skerry.runtimes.runtime import Runtime, Store


def save_checkpoint(folder: Path, state: State, store: Store, runtime: Runtime, run: str) -> None:
    """Save a set of files for ``state`` in ``folder`` and make it the latest; every process must call it.

    Args:
        folder: of the run; processes on machines without a shared folder write to folders of their own.
        state: the counts and sums.
        store: what each process keeps.
        runtime: of all processes.
        run: identifies the run (its settings).
    """
    rank, num = runtime.rank, runtime.num_processes
    # A run that is started again may reach the round of the latest complete set, which must stay until the next is
    # complete.
    same = rank == 0 and layout.latest_set_name(folder) == layout.set_name(state.round, again=False)
    again = bool(runtime.total(torch.tensor(int(same))))
    here = folder / layout.SETS / layout.set_name(state.round, again=again)
    here.mkdir(parents=True, exist_ok=True)
    digests = torch.zeros(num, layout.DIGEST_BYTES, dtype=torch.int64)
    digests[rank] = torch.tensor(list(bytes.fromhex(_save_file(here / layout.file_name(rank, num), state, store, run))))
    digests = runtime.total(digests)  # all files are there now
    if rank == 0:
        layout.SetIndex(state.round, again, layout.digests_from_tensor(digests)).write(folder, run)
    runtime.total(torch.zeros(1))  # no process removes the old set before the new one is the latest
    for old in (folder / layout.SETS).iterdir():
        if old.name != here.name and re.fullmatch(r"round-\d{8}(-again)?", old.name):
            shutil.rmtree(old, ignore_errors=True)


def _save_file(path: Path, state: State, store: Store, run: str) -> str:
    """Save what this process keeps; return its checksum."""
    tensors: dict[str, Tensor] = {name: t.detach().cpu().contiguous() for name, t in store.shards().items()}
    tensors |= {layout.TRAINED: state.trained, layout.HELD: store.layout.held}
    numbers = {name: value for name, value in vars(state).items() if name != "trained"}
    sizes = {name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in store.sizes.items()}
    metadata = {
        "format": layout.FORMAT,
        "run": run,
        "plan": store.plan.digest(),
        "state": json.dumps(numbers),
        "sizes": json.dumps(sizes),
    }
    metadata["checksum"] = layout.checksum(sorted(tensors.items()), metadata)
    atomic.write_with(path, lambda draft: save_tensors(tensors, draft, metadata))
    return metadata["checksum"]
