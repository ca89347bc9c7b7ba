"""Checkpoints: a set of safetensors files, one a process, written in parallel, atomic as a set, without pickle.

    checkpoint.json                                   which set is the last complete one, with each file's checksum
    checkpoint/round-00000120/0-of-4.safetensors      what process 0 kept: its subnet and its resting runs

Each process writes its file and waits for the others; then the first one replaces ``checkpoint.json`` in one step, and
older sets go. So a kill at any instant leaves the last complete set. Files are safetensors, not
``torch.distributed.checkpoint``, which pickles its index: whoever could write one could run code in our process.

A process that finds its own file of a set for the same assignment takes it as it is, so without a shared folder each
machine needs its own files only. With another number of workers (or serially) it reads what it is to hold out of all
files: a checkpoint is a ``Source``.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from skerry.checkpoint.state import TOTALS, State
from skerry.exchange.gathering import stored_parts
from skerry.files import atomic
from skerry.files.tensor_file import save_tensors
from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.runtimes.runtime import KEPT, RESTING, Runtime, Store
from skerry.subnet.index import Cut, Index
from skerry.subnet.slicing import put_
from skerry.weights.part_of_file import read_part

_FORMAT = "skerry-checkpoint-3"
_TRAINED, _HELD = "::trained", "::held"
_DIGEST_BYTES = 16


class CheckpointError(ValueError):
    """A checkpoint that is corrupt, foreign or does not fit; the message names the file and the remedy."""


@dataclass(kw_only=True)
class Checkpoints:
    """Where and how often training writes checkpoints, and whether it goes on from the last.

    Attributes:
        folder: of the run.
        run: says whose they are (its settings); a checkpoint of another run is refused.
        every_s: seconds between two; 0: after every round. The last round is always followed by one.
        resume: whether to go on from the last one in ``folder``, if there is one.
    """

    folder: Path
    run: str = ""
    every_s: float = 10.0
    resume: bool = False
    _written: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)

    def last(self, plan: Plan, sizes: Mapping[str, Tensor], runtime: Runtime) -> "Checkpoint | None":
        """Return the checkpoint to resume from."""
        return last(self.folder, plan, sizes, runtime, self.run) if self.resume else None

    def write_if_due(self, state: State, store: Store, runtime: Runtime, *, done: bool) -> None:
        """Write one if the first process's clock says so; every process must call it."""
        due = runtime.rank == 0 and (done or time.monotonic() - self._written >= self.every_s)
        runtime.at(state.round - 1, "checkpoint")
        if not runtime.total(torch.tensor(int(due))):
            return
        started = time.perf_counter()
        write(self.folder, state, store, runtime, self.run)
        self._written = time.monotonic()
        took = time.perf_counter() - started
        state.totals["checkpoint_s"] += took
        state.totals["time_s"] += took


def write(folder: Path, state: State, store: Store, runtime: Runtime, run: str) -> None:
    """Write a set for ``state`` into ``folder`` and make it the last one; every process must call it.

    Args:
        folder: of the run; processes on machines without a shared folder write to folders of their own.
        state: the counts and sums.
        store: what each process keeps.
        runtime: of all processes.
        run: says whose it is (its settings).
    """
    rank, num = runtime.rank, runtime.num_processes
    # A run that begins anew may come to the round of the last complete set, which must stay until the next is complete.
    again = rank == 0 and _last_set(folder) == _set_name(state.round, again=False)
    again = bool(runtime.total(torch.tensor(int(again))))
    here = folder / "checkpoint" / _set_name(state.round, again=again)
    here.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in store.shards().items()}
    tensors |= {_TRAINED: state.trained, _HELD: store.layout.held}
    numbers = {"round": state.round, "bad_rounds": state.bad_rounds, "totals": state.totals}
    dealt = store.plan.digest()
    sizes = {name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in store.sizes.items()}
    told = {"format": _FORMAT, "run": run, "plan": dealt, "state": json.dumps(numbers), "sizes": json.dumps(sizes)}
    checksum = _checksum(tensors, told)
    told["checksum"] = checksum
    atomic.write_with(here / _file_name(rank, num), lambda draft: save_tensors(tensors, draft, told))
    digests = torch.zeros(num, _DIGEST_BYTES, dtype=torch.int64)
    digests[rank] = torch.tensor(list(bytes.fromhex(checksum)))
    digests = runtime.total(digests)  # and now all files are there
    if rank == 0:
        sums = [bytes(row.tolist()).hex() for row in digests]
        index = {"format": _FORMAT, "run": run, "round": state.round, "again": again, "checksums": sums}
        atomic.write(folder / "checkpoint.json", (json.dumps(index, indent=1) + "\n").encode())
    runtime.total(torch.zeros(1))  # nobody removes the old set before the new one is the last
    for old in (folder / "checkpoint").iterdir():
        if old.name != here.name and re.fullmatch(r"round-\d{8}(-again)?", old.name):
            shutil.rmtree(old, ignore_errors=True)


def last(folder: Path, plan: Plan, sizes: Mapping[str, Tensor], runtime: Runtime, run: str) -> "Checkpoint | None":
    """Return the last complete set in ``folder``, None if there is none yet; every process must call it.

    Raises:
        CheckpointError: a file is missing, damaged, not of Skerry, or of another run or model.
    """
    path = folder / "checkpoint.json"
    index: dict[str, Any] = {"round": -1, "again": False, "checksums": []}
    problem: CheckpointError | None = None
    if runtime.rank == 0 and path.exists():
        try:
            index = _read_index(path, run)
        except CheckpointError as error:
            problem = error
    # The first process's word counts: others may be on machines where there is no index.
    about = torch.tensor([index["round"] + 1, index["again"], len(index["checksums"]), problem is not None])
    round, again, num_files, failed = runtime.total(about * (runtime.rank == 0)).tolist()
    digests = torch.zeros(num_files, _DIGEST_BYTES, dtype=torch.int64)
    for row, checksum in zip(digests, index["checksums"], strict=False):
        row.copy_(torch.tensor(list(bytes.fromhex(checksum))))
    digests = runtime.total(digests)
    if problem is not None:
        raise problem
    if failed:
        raise CheckpointError(f"{path}: process 0 cannot read it")
    if round == 0:
        return None
    checksums = [bytes(row.tolist()).hex() for row in digests]
    set_name = _set_name(round - 1, again=bool(again))
    return Checkpoint(folder / "checkpoint" / set_name, plan, sizes, runtime.rank, run, checksums)


class Checkpoint:
    """A set of files: the state of a run, and the source of its tensors; made by ``last``.

    Attributes:
        state: as it was.
        sizes: full-size tensors on the meta device, optimizer state that travels included.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        sizes: Mapping[str, Tensor],
        rank: int,
        run: str,
        checksums: list[str],
    ) -> None:
        self._folder, self._plan, self._run = folder, plan, run
        self._checksums = checksums
        self._checked: set[int] = set()
        # A process on a machine of its own has its own file only.
        mine = rank if rank < len(checksums) and self._path(rank).exists() else 0
        told, small = self._check(mine)
        self._held, trained = small[_HELD], small[_TRAINED]
        numbers = json.loads(told["state"])
        totals = {key: float(numbers["totals"][key]) for key in TOTALS}
        self.state = State(int(numbers["round"]), trained, int(numbers["bad_rounds"]), totals)
        self.sizes = {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for name, (dtype, *shape) in json.loads(told["sizes"]).items()
        }
        for name, size in sizes.items():
            got = self.sizes.get(name)
            if got is None or (got.shape, got.dtype) != (size.shape, size.dtype):
                what = "is missing" if got is None else f"has shape {tuple(got.shape)}, {got.dtype}"
                raise CheckpointError(
                    f"{self._path(mine)}: {name} {what}, expected {tuple(size.shape)}, {size.dtype}; it is of another "
                    "model"
                )

    def own(self, worker: int, assignment: Assignment, only: str = "") -> dict[str, Tensor] | None:
        """Return what the process of ``worker`` kept, if it kept it for this assignment; by the beginning of names."""
        if not torch.equal(assignment.held, self._held) or len(self._checksums) != assignment.num_workers:
            return None
        self._check(worker)
        with safe_open(self._path(worker), framework="pt") as file:
            names = [n for n in file.keys() if n.startswith(only) and not n.startswith("::")]  # noqa: SIM118 (no dict)
            return {n: file.get_tensor(n).clone() for n in names}  # what is read is a part of the file in memory

    def kept_by(self, worker: int) -> dict[str, Tensor]:
        """Return what ``worker`` kept for itself, from whichever file has it."""
        mark = f"{KEPT}{worker}::"
        own = [worker] if worker < len(self._checksums) else []
        for process in [*own, *(p for p in range(len(self._checksums)) if p != worker)]:
            self._check(process)
            with safe_open(self._path(process), framework="pt") as file:
                names = [n for n in file.keys() if n.startswith(mark)]  # noqa: SIM118 (no dict)
                if names or (process == worker and len(self._checksums) > 1):
                    return {n.removeprefix(mark): file.get_tensor(n).clone() for n in names}
        return {}

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return the part of the full-size tensor ``name`` that ``cut`` names, from whichever files have it."""
        size = self.sizes[name]
        wanted = tuple(_ids(index, s) for index, s in zip(cut or (None,) * size.dim(), size.shape, strict=True))
        result = torch.empty([len(index) for index in wanted], dtype=size.dtype)
        for part in stored_parts(self._plan, name, size.shape, Assignment(self._held)):
            cut = part.cut or (None,) * size.dim()
            has = tuple(_ids(index, s) for index, s in zip(cut, size.shape, strict=True))
            self._copy(part.worker, f"{RESTING}{name}" if part.owned else name, wanted, has, result)
        return result

    def _copy(
        self, worker: int, name: str, wanted: tuple[Tensor, ...], has: tuple[Tensor, ...], result: Tensor
    ) -> None:
        """Copy what file ``worker`` has of ``wanted`` into ``result``."""
        into = [torch.isin(w, h).nonzero().flatten() for w, h in zip(wanted, has, strict=True)]
        if all(len(index) for index in into):
            out_of = tuple(Index(torch.searchsorted(h, w[i])) for w, h, i in zip(wanted, has, into, strict=True))
            put_(result, self._read(worker, name, out_of), tuple(Index(index) for index in into))

    def _read(self, worker: int, name: str, cut: Cut) -> Tensor:
        self._check(worker)
        with safe_open(self._path(worker), framework="pt") as file:
            shape = torch.Size(file.get_slice(name).get_shape())
        return read_part(self._path(worker), name, shape, self.sizes[name.removeprefix(RESTING)].dtype, cut)

    def _path(self, worker: int) -> Path:
        return self._folder / _file_name(worker, len(self._checksums))

    def _check(self, worker: int) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Raise CheckpointError unless the file of ``worker`` is whole and of this run; return what it tells."""
        path = self._path(worker)
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                small = {n: file.get_tensor(n) for n in file.keys() if n in (_TRAINED, _HELD)}  # noqa: SIM118
                if worker not in self._checked:
                    tensors = _Tensors(file)
                    own = {key: told.get(key, "") for key in ("format", "run", "plan", "state", "sizes")}
                    checksum = _checksum(tensors, own)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path}: missing; copy it here, or resume with as many workers as have written the set"
            ) from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable checkpoint ({error}); remove it to start again") from error
        if worker in self._checked:
            return told, small
        if told.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: format '{told.get('format')}', expected '{_FORMAT}'; it is not Skerry's")
        if told.get("checksum") != checksum:
            raise CheckpointError(
                f"{path}: its checksum does not fit its contents; it is damaged, remove it to start again"
            )
        if told["run"] != self._run:
            raise CheckpointError(f"{path}: it is of a run with other settings; put back this run's own or start anew")
        if told["plan"] != self._plan.digest():
            raise CheckpointError(
                f"{path}: it is of a run with another plan or number of nets; put back this run's own or start anew"
            )
        if checksum != self._checksums[worker]:
            raise CheckpointError(f"{path}: it is of another set than checkpoint.json; put this run's own back")
        self._checked.add(worker)
        return told, small


def _ids(index: Index | None, size: int) -> Tensor:
    return (Index.run(0, size) if index is None else index).ids


class _Tensors(Mapping[str, Tensor]):
    """The tensors of an open file, read one at a time."""

    def __init__(self, file: Any) -> None:
        self._file, self._names = file, list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _read_index(path: Path, run: str) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads(path.read_text())
        good = index["format"] == _FORMAT and isinstance(index["round"], int) and isinstance(index["again"], bool)
        sums = [bytes.fromhex(checksum) for checksum in index["checksums"]]
        good = good and all(len(checksum) == _DIGEST_BYTES for checksum in sums)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error}); remove it to start again") from error
    if not good:
        raise CheckpointError(f"{path}: expected format '{_FORMAT}'; it is not Skerry's")
    if index.get("run") != run:
        raise CheckpointError(f"{path}: it is of a run with other settings; put back this run's own or start anew")
    return index


def _set_name(round: int, *, again: bool) -> str:
    return f"round-{round:08d}{'-again' if again else ''}"


def _last_set(folder: Path) -> str | None:
    """The name of the set that the index names; None without a readable one."""
    try:
        index = json.loads((folder / "checkpoint.json").read_text())
        return _set_name(index["round"], again=index.get("again", False))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _file_name(rank: int, num_files: int) -> str:
    return f"{rank}-of-{num_files}.safetensors"


def _checksum(tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(sorted(told.items())).encode(), digest_size=_DIGEST_BYTES)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
