"""Saving a checkpoint: every process writes its file, then the first one writes the index, which completes the set.

So a kill at any instant leaves the latest complete set, and the one before it. If one process cannot write, all give
the set up.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from skerry.checkpoint import layout
from skerry.checkpoint.agreement import first_text, texts_of_all
from skerry.checkpoint.layout import Owner, SetIndex
from skerry.checkpoint.state import State
from skerry.files import atomic
from skerry.files.tensor_file import save_tensors
from skerry.runtimes.runtime import Runtime, Store


def save_checkpoint(
    folder: Path, state: State, store: Store, runtime: Runtime, *, run: str, method: str, before: str | None = None
) -> str:
    """Save a set of files for ``state`` in ``folder``, and remove all sets but ``before``; every process must call it.

    Args:
        folder: of the run; processes on machines without a shared folder write to folders of their own.
        state: the counts and sums.
        store: what each process keeps.
        runtime: of all processes.
        run: identifies the run (its settings).
        method: the algorithm's name.
        before: the name of the set that the run has saved last, or was resumed from.

    Returns:
        The name of the new set.

    Raises:
        WriteFailed: a process cannot write; all of them raise it, and nothing of the new set is left.
    """
    rank, num = runtime.rank, runtime.num_processes
    numbers = torch.zeros(num, dtype=torch.int64)
    numbers[rank] = layout.next_number(folder)
    number = int(runtime.total(numbers).max())
    name = layout.set_name(number, state.round)
    here, owner = folder / layout.SETS / name, Owner(run=run, method=method, plan=store.plan.digest())

    def save_file() -> str:
        with atomic.writing(here):
            here.mkdir(parents=True, exist_ok=True)
        return _save_file(here / layout.file_name(rank, num), state, store)

    def complete() -> str:
        if rank == 0:
            SetIndex(state.round, owner, checksums).write(here)
        return ""

    checksums = _in_all(save_file, here, runtime, before)
    _in_all(complete, here, runtime, before)
    for old in layout.sets(folder):
        # Not a later one, of processes that have gone on while this one was stopped.
        if old.name != before and layout.number_of(old) < number:
            atomic.remove_folder(old)
    return name


def _in_all(write: Callable[[], str], here: Path, runtime: Runtime, before: str | None) -> list[str]:
    """Return what ``write`` returns in each process; remove the set and raise WriteFailed if it fails in one."""
    result = problem = ""
    try:
        result = write()
    except OSError as error:
        problem = str(error)
    if told := first_text(problem, runtime):
        atomic.remove_folder(here)
        kept = "there is no checkpoint yet"
        if before is not None:
            kept = f"the checkpoint after round {layout.round_of(before)} is kept"
        raise atomic.WriteFailed(f"{told}; {kept}")
    return texts_of_all(result, runtime)


def _save_file(path: Path, state: State, store: Store) -> str:
    """Save what this process keeps; return its checksum."""
    tensors: dict[str, Tensor] = {name: t.detach().cpu().contiguous() for name, t in store.shards().items()}
    tensors |= {layout.TRAINED: state.trained, layout.HELD: store.layout.held}
    numbers = {name: value for name, value in vars(state).items() if name != "trained"}
    sizes = {name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in store.sizes.items()}
    metadata = {"format": layout.FORMAT, "state": json.dumps(numbers), "sizes": json.dumps(sizes)}
    metadata["checksum"] = layout.checksum(sorted(tensors.items()), metadata)
    atomic.write_with(path, lambda draft: save_tensors(tensors, draft, metadata))
    return metadata["checksum"]
