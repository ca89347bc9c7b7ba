"""What processes tell each other beside tensors: reports, settings that must agree, and texts."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from skerry.algorithm import Algorithm
from skerry.plan.table import Plan
from skerry.randomness import seed_of
from skerry.runtimes.distributed.meeting import PeerLost
from skerry.runtimes.distributed.wire import WireFormat
from skerry.runtimes.runtime import Change, Report

_MOST_TOLD = 4  # settings that differ, in one message
_LONG = 60  # the most characters of a value in a message


class Peers(ABC):
    """The part of a runtime of one worker per process that needs only two collective operations."""

    def __init__(self, rank: int, num_processes: int, wire: WireFormat) -> None:
        self.rank, self.num_processes, self._format = rank, num_processes, wire
        self.round, self._stage = 0, "start"
        self.goes_on = False
        self.change: Change | None = None
        self.ending: Exception | None = None

    @abstractmethod
    def all_gather(self, row: Tensor) -> list[Tensor]:
        """Return the rows of all processes, which have the same shape, in order."""

    @abstractmethod
    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""

    def mine(self, num_workers: int) -> list[int]:
        """Return the worker with the rank of this process."""
        if num_workers != self.num_processes:
            raise ValueError(
                f"{num_workers} workers in {self.num_processes} processes: expected one process per worker"
            )
        return [self.rank]

    def resume(self, algorithm: Algorithm, state: Any, sizes: Mapping[str, Tensor], plan: Plan) -> Any | None:
        """Return None: all processes begin together."""
        return None

    def went_on(self, state: Any) -> None:  # noqa: B027 (most have nothing to note)
        """Do nothing."""

    def at(self, round: int, stage: str) -> None:
        """Note where this process is."""
        self.round, self._stage = round, stage

    def reports(self, mine: Report, agreement: Mapping[str, str]) -> list[Report]:
        """Return the reports of all workers, in order.

        Args:
            mine: the report of the worker here.
            agreement: what must be the same in all processes.

        Raises:
            ValueError: ``agreement`` differs.
            PeerLost: a process was lost, or is in another round.
        """
        self.agree(agreement)
        figures = [mine.worker, self.round, mine.good, mine.loss, mine.flop, mine.local_s]
        row = torch.tensor(figures, dtype=torch.float64)
        reports = []
        for rank, (worker, round, good, *others) in enumerate(r.tolist() for r in self.all_gather(row)):
            if (worker, round) != (rank, self.round):
                raise PeerLost(
                    f"{self.where()}: rank {rank} has worker {worker:.0f} and is in round {round:.0f}; start "
                    "all processes with the same settings and the same checkpoint"
                )
            reports.append(Report(rank, bool(good), *others))
        return reports

    def agree(self, values: Mapping[str, str]) -> None:
        """Raise ValueError unless all processes have the same ``values`` by name; it says what differs, and how."""
        values = {**values, "wire": self._format}
        text = json.dumps(values, sort_keys=True)
        digest = torch.tensor([seed_of(text)])
        if all(torch.equal(theirs, digest) for theirs in self.all_gather(digest)):
            return
        of_all: list[dict[str, str]] = [json.loads(theirs) for theirs in self.gather(text)]
        rank = next((rank for rank, theirs in enumerate(of_all) if theirs != values), None)
        if rank is None:  # the digest was changed on the way
            return
        raise ValueError(
            f"{self.where()}: {differences(values, of_all[rank], f'on rank {rank}')}; start all processes with the "
            "same settings, model, code and checkpoint"
        )

    def gather(self, text: str) -> list[str]:
        """Return the texts of all processes, in order."""
        mine = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8)
        sizes = [int(size) for size in self.all_gather(torch.tensor([len(mine)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(mine)] = mine
        rows = self.all_gather(padded)
        return [bytes(row[: size - 1].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]

    def where(self) -> str:
        """Return rank, round and stage, for messages."""
        return f"rank {self.rank}, round {self.round}, {self._stage}"


def differences(mine: Mapping[str, str], theirs: Mapping[str, str], where: str) -> str:
    """Return, in words, what differs between the settings here and those of others, who are ``where``."""
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    told = [f"{name} is {_differing(mine.get(name), theirs.get(name), where)}" for name in names]
    more = f"; and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
    return f"{'; '.join(told[:_MOST_TOLD])}{more}"


def _differing(mine: str | None, theirs: str | None, where: str) -> str:
    """Return two values that differ in words; of long ones what comes shortly before and after the first difference."""
    same = next((k for k, pair in enumerate(zip(mine or "", theirs or "", strict=False)) if len({*pair}) > 1), 0)
    begin = max(0, same - _LONG // 4)
    here, there = (
        "not given" if v is None else v if len(v) <= _LONG else f"...{v[begin : begin + _LONG]}..."
        for v in (mine, theirs)
    )
    return f"{here} here and {there} {where}"
