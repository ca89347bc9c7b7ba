"""The store of a server that nobody waits at: clients train on the model as it was when they began.

A subnet is cut out when its client begins, and trained when the reply is due, which comes to the same.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skerry.clients import Turn
from skerry.merge.aggregate import aggregate_
from skerry.model.optimizer_state import placed
from skerry.model.tensors import named_tensors
from skerry.partitions.assignment import Assignment
from skerry.partitions.by_movement import kept_by_movement
from skerry.runtimes.overlap import BEGAN
from skerry.runtimes.runtime import Beginning, Handover, Report, with_worker
from skerry.runtimes.whole_model import WholeModel
from skerry.subnet.extract import extract

_UNITS = "::units"  # no tensor's name begins so
_CLIENT = "::client"
_MOVED = "moved::"
"""Prefix of worker and name of a tensor: how much units have moved."""


@dataclass(frozen=True)
class _Begun:
    """What a client begins with: its units, and its tensors by name."""

    client: int
    units: Tensor
    tensors: dict[str, Tensor]


class ServerStore(WholeModel):
    """Keeps the full model, and a copy of what each active client began with."""

    def __init__(self, beginning: Beginning) -> None:
        super().__init__(beginning)
        assert beginning.algorithm is not None
        assert beginning.algorithm.server is not None
        assert beginning.algorithm.clients is not None
        assert beginning.timeline is not None
        self._partition, self._timeline = beginning.algorithm.partition, beginning.timeline
        self._server, self._clients = beginning.algorithm.server, beginning.algorithm.clients
        self._moved, self._begun = torch.zeros(self.plan.num_units), dict[int, _Begun]()
        if (saved := beginning.saved) is not None:
            self._began.clear()  # here by turn, not by worker
            self._moved = saved.of_worker(_MOVED, 0)[_UNITS]
            for turn in self._timeline.under_way(beginning.round):
                tensors = saved.of_worker(BEGAN, turn.number)
                client = tensors.pop(_CLIENT, torch.tensor(turn.client))  # older checkpoints lack it
                if _UNITS not in tensors or int(client) != turn.client:
                    raise ValueError(
                        "checkpoints: other clients were under way when it was saved; resume with the same clients, "
                        "and as many workers and replies per round"
                    )
                self._begun[turn.number] = _Begun(turn.client, tensors.pop(_UNITS), placed(tensors, beginning.device))
        self._go_on(beginning.round)

    def subnet(self, worker: int) -> tuple[nn.Module, dict[str, Tensor]]:
        """Return the subnet that the client began with whose reply is the ``worker``-th of the round."""
        begun = self._begun[self._turns[worker].number]
        subnet = extract(self.model, self.plan, begun.units)
        for name, tensor in named_tensors(subnet).items():
            tensor.copy_(begun.tensors[name])
        return subnet, {}

    def part(self, worker: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the units and the tensors that the client began with whose reply is the ``worker``-th of the round."""
        begun = self._begun[self._turns[worker].number]
        return begun.units, begun.tensors

    @torch.no_grad()
    def exchange(self, mine: list[Handover], then: Assignment, *, overlap: bool = False) -> list[Report]:
        """Take in the replies of the round; those that begin next get the model as it is then."""
        pieces: list[dict[str, Tensor] | None] = []
        before = {n: t.clone() for n, t in self.tensors.items()} if self._server.drops_moved is not None else {}
        for handed, turn in zip(mine, self._turns, strict=True):
            begun = self._begun.pop(turn.number)
            now = self._parts(begun.units)
            taken = {n: self._server.taken_in(now[n], begun.tensors[n], t) for n, t in handed.tensors.items()}
            pieces.append(taken if handed.report.good else None)
        aggregate_(self.tensors, self.plan, self.assignment, pieces)
        if before:
            self._note_moves(before)
        self._go_on(self._round + 1)
        return [replace(h.report, bytes_due=float(sum(t.nbytes for t in h.tensors.values()))) for h in mine]

    def shards(self) -> dict[str, Tensor]:
        """Return all tensors, and what is under way."""
        begun = {
            number: {_CLIENT: torch.tensor(b.client), _UNITS: b.units, **b.tensors} for number, b in self._begun.items()
        }
        return super().shards() | with_worker(BEGAN, begun) | with_worker(_MOVED, {0: {_UNITS: self._moved}})

    def _go_on(self, round: int) -> None:
        """Let clients begin that do before ``round``, and note whose replies will make it."""
        self._round, self._turns = round, self._timeline.turns(round)
        for turn in self._timeline.starting(round):
            units = self._units(turn)
            self._begun[turn.number] = _Begun(turn.client, units, self._parts(units))
        held = torch.zeros(len(self._turns), self.plan.num_units, dtype=torch.bool)
        for row, turn in zip(held, self._turns, strict=True):
            row[self._begun[turn.number].units] = True
        self.assignment = Assignment(held)

    def _units(self, turn: Turn) -> Tensor:
        if self._server.drops_moved is not None:
            rank, key = self._clients.rank(turn.client), (self._clients.seed, "moved", turn.number)
            return kept_by_movement(self.plan.axes, self._moved, self._server.drops_moved, rank, *key)
        round, worker = divmod(turn.number, self._partition.num_workers)
        return self._partition.assign(self.plan.axes, round).units(worker)

    def _note_moves(self, before: dict[str, Tensor]) -> None:
        """Note, for the units of this round, the mean move of the elements that make them."""
        moves, counts = torch.zeros(2, self.plan.num_units + 1, dtype=torch.float64)
        for name, tensor in self.model.named_parameters():
            for d, dim in enumerate(self.plan.dims.get(name, ())):
                if dim is not None and dim.role == "out":
                    move = (tensor - before[name]).abs().transpose(0, d).reshape(len(dim.units), -1).cpu().double()
                    units = dim.units.long() % len(moves)  # -1 is the last
                    moves.index_add_(0, units, move.sum(1))
                    counts.index_add_(0, units, torch.full((len(units),), move.shape[1], dtype=torch.float64))
        held = self.assignment.held.any(0)
        self._moved[held] = (moves / counts.clamp(min=1))[:-1][held].float()
