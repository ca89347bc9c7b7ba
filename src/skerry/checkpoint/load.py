"""Loading a checkpoint: the state of a run, and a source of its tensors.

A process that finds its own file of a set for the same assignment takes it as it is, so without a shared folder each
machine needs only its own files. With another number of workers, or serially, a process reads what it is to hold from
all files.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from skerry.checkpoint import layout
from skerry.checkpoint.checked_files import CheckedFiles
from skerry.checkpoint.layout import CheckpointError, SetIndex
from skerry.checkpoint.state import TOTALS, State
from skerry.exchange.gathering import cuts_of_all, stored_parts
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.runtimes.runtime import RESTING, Runtime
from skerry.subnet.index import Cut, Index
from skerry.subnet.slicing import put_
from skerry.weights.part_of_file import read_part


def load_latest(
    folder: Path, plan: Plan, sizes: Mapping[str, Tensor], runtime: Runtime, run: str
) -> "SavedTensors | None":
    """Return the latest complete set in ``folder``, None if there is none yet; every process must call it.

    Args:
        folder: of the run.
        plan: of what is trained.
        sizes: the tensors of what is trained by name, of any device; their values are not used.
        runtime: of all processes.
        run: identifies the run (its settings).

    Raises:
        CheckpointError: a file is missing, damaged, not Skerry's, or of another run or model.
    """
    index = _latest_index(folder, runtime, run)
    if index is None:
        return None
    files = CheckedFiles(folder / layout.SETS / index.set_name, plan, run, index.checksums)
    saved = SavedTensors(files, plan, runtime.rank)
    saved.check_sizes(sizes)
    return saved


def _latest_index(folder: Path, runtime: Runtime, run: str) -> SetIndex | None:
    """Return the first process's index: other processes may be on machines where there is none."""
    index = SetIndex(-1, False, [])
    problem: CheckpointError | None = None
    if runtime.rank == 0 and (folder / layout.INDEX).exists():
        try:
            index = layout.read_index(folder, run)
        except CheckpointError as error:
            problem = error
    numbers = torch.tensor([index.round + 1, index.again, len(index.checksums), problem is not None])
    round, again, num_files, failed = runtime.total(numbers * (runtime.rank == 0)).tolist()
    digests = runtime.total(layout.digests_to_tensor(index.checksums, num_files))
    if problem is not None:
        raise problem
    if failed:
        raise CheckpointError(f"{folder / layout.INDEX}: process 0 cannot read it")
    return SetIndex(round - 1, bool(again), layout.digests_from_tensor(digests)) if round else None


class SavedTensors:
    """The tensors of a set of files as a ``Source``, with the state of the run; made by ``load_latest``.

    Attributes:
        state: as it was saved.
        sizes: full-size tensors on the meta device, including optimizer state that travels.
    """

    def __init__(self, files: CheckedFiles, plan: Plan, rank: int) -> None:
        self._files, self._plan = files, plan
        # A process on a machine of its own has only its own file.
        self._mine = rank if rank < len(files) and files.path(rank).exists() else 0
        with files.open(self._mine) as file:
            metadata = file.metadata()
            self._held, trained = file.get_tensor(layout.HELD), file.get_tensor(layout.TRAINED)
        self._cuts = cuts_of_all(plan, Assignment(self._held))
        numbers = json.loads(metadata["state"])
        totals = {key: float(numbers["totals"][key]) for key in TOTALS}
        counts = {key: int(numbers.get(key, 0)) for key in ("round", "bad_rounds", "num_rounds", "num_workers")}
        self.state = State(trained=trained, totals=totals, settings=numbers.get("settings", {}), **counts)
        self.sizes = {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for name, (dtype, *shape) in json.loads(metadata["sizes"]).items()
        }

    def check_sizes(self, sizes: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError unless the tensors ``sizes`` are there, with their shapes and dtypes."""
        for name, size in sizes.items():
            got = self.sizes.get(name)
            if got is None or (got.shape, got.dtype) != (size.shape, size.dtype):
                what = "is missing" if got is None else f"has shape {tuple(got.shape)}, {got.dtype}"
                raise CheckpointError(
                    f"{self._files.path(self._mine)}: {name} {what}, expected {tuple(size.shape)}, {size.dtype}; it is "
                    "of another model"
                )

    def own(self, worker: int, assignment: Assignment) -> dict[str, Tensor] | None:
        """Return what the process of ``worker`` kept; None if that was for another assignment."""
        if not torch.equal(assignment.held, self._held) or len(self._files) != assignment.num_workers:
            return None
        return self._read_all(worker, "")

    def of_worker(self, prefix: str, worker: int) -> dict[str, Tensor]:
        """Return what was stored of ``worker`` under ``prefix`` (``with_worker``), from the file that has it."""
        mark, num = f"{prefix}{worker}::", len(self._files)
        own = [worker] if worker < num else []
        for rank in [*own, *(r for r in range(num) if r != worker)]:
            found = self._read_all(rank, mark)
            if found or (rank == worker and num > 1):
                return {name.removeprefix(mark): tensor for name, tensor in found.items()}
        return {}

    def _read_all(self, rank: int, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of a file whose names begin with ``prefix``."""
        with self._files.open(rank) as file:
            names = [n for n in file.keys() if n.startswith(prefix) and not n.startswith("::")]  # noqa: SIM118 (no dict)
            return {n: file.get_tensor(n).clone() for n in names}  # else each would hold the whole file in memory

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return the part of the full-size tensor ``name`` that ``cut`` names, from the files that have it."""
        size = self.sizes[name]
        wanted = _indices(cut, size.shape)
        result = torch.empty([len(index) for index in wanted], dtype=size.dtype)
        for part in stored_parts(self._plan, name, size.shape, self._cuts):
            stored_name = f"{RESTING}{name}" if part.owned else name
            self._copy(part.worker, stored_name, wanted, _indices(part.cut, size.shape), result)
        return result

    def _copy(
        self, worker: int, name: str, wanted: tuple[Tensor, ...], has: tuple[Tensor, ...], result: Tensor
    ) -> None:
        """Copy into ``result`` the ``wanted`` indices among those that the file of ``worker`` has."""
        into = [torch.isin(w, h).nonzero().flatten() for w, h in zip(wanted, has, strict=True)]
        if all(len(index) for index in into):
            out_of = tuple(Index(torch.searchsorted(h, w[i])) for w, h, i in zip(wanted, has, into, strict=True))
            put_(result, self._read_part(worker, name, out_of), tuple(Index(index) for index in into))

    def _read_part(self, worker: int, name: str, cut: Cut) -> Tensor:
        with self._files.open(worker) as file:
            shape = torch.Size(file.get_slice(name).get_shape())
        return read_part(self._files.path(worker), name, shape, self.sizes[name.removeprefix(RESTING)].dtype, cut)


def _indices(cut: Cut, shape: torch.Size) -> tuple[Tensor, ...]:
    """Return for each dim the indices that ``cut`` names."""
    pairs = zip(cut or (None,) * len(shape), shape, strict=True)
    return tuple((Index.run(0, size) if index is None else index).ids for index, size in pairs)
