"""Loading a checkpoint: the state of a run, and a source of its tensors.

A process that finds its own file of a set for the same assignment takes it as it is, so without a shared folder each
machine needs only its own files. With another number of workers, or serially, a process reads what it is to hold from
all files.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from skerry.checkpoint import layout
from skerry.checkpoint.agreement import first_text
from skerry.checkpoint.checked_files import CheckedFiles
from skerry.checkpoint.layout import CheckpointError, Owner
from skerry.checkpoint.state import TOTALS, State
from skerry.exchange.gathering import cuts_of_all, stored_parts
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.runtimes.runtime import RESTING, Runtime
from skerry.subnet.index import Cut, Index
from skerry.subnet.slicing import put_
from skerry.weights.part_of_file import read_part


def load_latest(
    folder: Path, plan: Plan, sizes: Mapping[str, Tensor], runtime: Runtime, *, run: str, method: str
) -> "SavedTensors | None":
    """Return the latest complete set in ``folder``, None if there is none yet; every process must call it.

    If a process finds a file of it damaged, all of them take the set before, and the first one warns.

    Args:
        folder: of the run.
        plan: of what is trained.
        sizes: the tensors of what is trained by name, of any device; their values are not used.
        runtime: of all processes.
        run: identifies the run (its settings).
        method: the algorithm's name.

    Raises:
        CheckpointError: no set is whole, or the latest is of another run, method, plan or model.
    """
    owner, problems = Owner(run=run, method=method, plan=plan.digest()), list[str]()
    for name, text, problem in _indices_of_first(folder, runtime):
        here = folder / layout.SETS / name
        if problem:
            problems.append(problem)
            continue
        index = layout.read_index(text)
        owner.check(index.owner, here / layout.INDEX)
        files = CheckedFiles(here, index.checksums)
        # A process on a machine of its own has only its own file.
        ranks = [runtime.rank] if len(files) == runtime.num_processes else range(len(files))
        if told := first_text(_of_rank(files.problem(ranks), runtime), runtime):
            problems.append(told)
            continue
        if problems and runtime.rank == 0:
            warnings.warn(f"{problems[0]}; resuming from the checkpoint after round {index.round}", stacklevel=2)
        saved = SavedTensors(files, plan, ranks[0])
        saved.check_sizes(sizes)
        return saved
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}; no checkpoint is whole, start anew in another folder")
    return None


def _indices_of_first(folder: Path, runtime: Runtime) -> list[tuple[str, str, str]]:
    """Return name, index, and what is wrong with it, of each complete set of the first process, the latest first.

    Other processes may be on machines without an index.
    """
    found, problem = list[tuple[str, str, str]](), ""
    if runtime.rank == 0:
        try:
            found = [(p.name, *_index(p / layout.INDEX, runtime)) for p in layout.complete_sets(folder)]
        except CheckpointError as error:
            problem = str(error)
    if told := first_text(problem, runtime):
        raise CheckpointError(told)
    return [(name, text, wrong) for name, text, wrong in json.loads(first_text(json.dumps(found), runtime))]


def _of_rank(problem: str, runtime: Runtime) -> str:
    """Return a problem with the process that has it, where there are several; the file may be on its machine only."""
    return f"rank {runtime.rank}: {problem}" if problem and runtime.num_processes > 1 else problem


def _index(path: Path, runtime: Runtime) -> tuple[str, str]:
    """Return an index as text, and what is wrong with it, empty if nothing is."""
    try:
        text = path.read_text()
        layout.read_index(text)
    except (OSError, ValueError, KeyError) as error:
        return "", _of_rank(f"{path}: not a readable checkpoint ({error})", runtime)
    return text, ""


class SavedTensors:
    """The tensors of a set of files as a ``Source``, with the state of the run; made by ``load_latest``.

    Args:
        files: of the set.
        plan: of what is trained.
        rank: of the file that is here in any case.

    Attributes:
        state: as it was saved.
        set_name: the name of the set.
        sizes: full-size tensors on the meta device, including optimizer state that travels.
    """

    def __init__(self, files: CheckedFiles, plan: Plan, rank: int) -> None:
        self._files, self._plan, self._path = files, plan, files.path(rank)
        self.set_name = files.folder.name
        with files.open(rank) as file:
            metadata = file.metadata()
            self._held, trained = file.get_tensor(layout.HELD), file.get_tensor(layout.TRAINED)
        self._cuts = cuts_of_all(plan, Assignment(self._held))
        numbers = json.loads(metadata["state"])
        totals = {key: float(numbers["totals"][key]) for key in TOTALS}
        counts = {key: int(numbers.get(key, 0)) for key in ("round", "bad_rounds", "num_rounds", "num_workers")}
        self.state = State(
            trained=trained,
            totals=totals,
            settings=numbers.get("settings", {}),
            observed=numbers["observed"],
            **counts,
        )
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
                    f"{self._path}: {name} {what}, expected {tuple(size.shape)}, {size.dtype}; it is of another model"
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
