"""What the round loop asks of a runtime: to run workers, and to keep the full model between rounds."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from skerry.partitions.assignment import Assignment
from skerry.plan.table import Plan
from skerry.weights.source import Source


@dataclass(frozen=True)
class Report:
    """What everybody gets to know of a worker's local steps.

    Attributes:
        worker: its number.
        good: whether its loss, weights, statistics and momenta are finite; else its piece is refused.
        loss: mean training loss of the round.
        flop: floating-point operations it spent.
        local_s: seconds it spent in local steps.
        bytes_due: what it has to send in this exchange, by the assignments; the store fills it in.
    """

    worker: int
    good: bool
    loss: float
    flop: float
    local_s: float
    bytes_due: float = 0.0


@dataclass(frozen=True)
class Handover:
    """What a worker gives back at the end of its local steps: its narrow tensors by name, and a report."""

    tensors: Mapping[str, Tensor]
    report: Report


RESTING = "resting::"
"""Before the name of a tensor: the run of it that a process is home to."""

KEPT = "kept::"
"""Before worker and name of a tensor: what a worker keeps for itself, and nobody else ever sees."""


def named_kept(kept: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return what workers keep, by names for a checkpoint."""
    return {f"{KEPT}{worker}::{name}": t for worker, own in kept.items() for name, t in own.items()}


@runtime_checkable
class Kept(Protocol):
    """A source that may have just what a process kept."""

    def own(self, worker: int, assignment: Assignment, only: str = "") -> Mapping[str, Tensor] | None:
        """Return what ``shards`` gave the process of ``worker``, if it was for ``assignment``.

        With ``only`` just what has a name that begins with it.
        """
        ...

    def kept_by(self, worker: int) -> dict[str, Tensor]:
        """Return what ``worker`` kept for itself, whichever process it was in; nothing if it was not there."""
        ...


class FullModel(Protocol):
    """The calibrated full model, to run and to read; no process need hold it whole."""

    @property
    def module(self) -> nn.Module:
        """Computes what the full model computes. Every process must call it equally often."""
        ...

    @property
    def inner(self) -> nn.Module:
        """Its modules as they are; their tensors may be on the meta device."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Return its tensors by name, one after the other, in the first process. Every process must go through them."""
        ...

    def names(self, name: str) -> list[str]:
        """Return the names under which a tensor is in the model's ``state_dict``; none for one that is not saved."""
        ...

    def whole(self) -> nn.Module:
        """Return it as an ordinary module; raise ValueError where no process holds it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a store is made of.

    Attributes:
        model: the full model; only read from where ``source`` is it.
        plan: its plan.
        source: where the values of its tensors come from.
        assignment: who holds what at first.
        start: where optimizer state starts, by key (``optimizer_state.initial``).
        state: full-size optimizer state on the meta device that ``source`` has, too.
    """

    model: nn.Module
    plan: Plan
    source: Source
    assignment: Assignment
    start: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


class Store(Protocol):
    """Keeps the full model between rounds, and what optimizers keep of it where that travels.

    Attributes:
        kept: by worker of this process, what it keeps for itself from round to round; the loop writes it.
    """

    kept: dict[int, dict[str, Tensor]]

    @property
    def plan(self) -> Plan:
        """What is dealt out."""
        ...

    @property
    def assignment(self) -> Assignment:
        """Who holds what now."""
        ...

    @property
    def layout(self) -> Assignment:
        """Who holds what of ``shards``: one worker with everything where this process keeps the whole model."""
        ...

    @property
    def sizes(self) -> Mapping[str, Tensor]:
        """Full-size tensors on the meta device, by name: what is kept."""
        ...

    @property
    def bytes_sent(self) -> float:
        """Bytes this process has sent for exchanges so far; evaluation and export not counted."""
        ...

    def subnet(self, worker: int) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """Return the worker's subnet, to train in place, and its narrow optimizer state."""
        ...

    def late(self, worker: int) -> Iterator[tuple[str, Tensor]]:
        """Wait for what the last exchange left to arrive late; return, by name, what to add to the parameters."""
        ...

    def exchange(self, mine: list[Handover], then: Assignment, *, overlap: bool = False) -> list[Report]:
        """Aggregate what all workers hand over and deal it out by ``then``; return all workers' reports in order.

        With ``overlap`` some parameters (``overlap.late_names``) are aggregated while workers train on: ``subnet``
        gives each its own values of them, and ``late`` what makes them the mean. A refused worker begins with what it
        began this round with.
        """
        ...

    def full(self, share: Tensor) -> FullModel:
        """Return the full model, scaled by ``share`` (``calibrate.py``)."""
        ...

    def shards(self) -> Mapping[str, Tensor]:
        """Return what this process keeps.

        Narrow tensors under their names, resting runs with ``RESTING`` before, and what its workers begin the next
        round with where that is not the mean yet, with ``BEGAN`` and the worker's number before; what they keep for
        themselves likewise with ``KEPT``.
        """
        ...


class Runtime(Protocol):
    """Runs some of the workers here."""

    rank: int
    num_processes: int

    def mine(self, num_workers: int) -> list[int]:
        """The workers that run in this process."""
        ...

    def keep(self, beginning: Beginning) -> Store:
        """Make the store."""
        ...

    def synchronized(self, module: nn.Module) -> tuple[nn.Module, Callable[[Tensor], None]]:
        """Return a module that computes what ``module`` does, and the backward that averages its gradients over all."""
        ...

    def total(self, tensor: Tensor) -> Tensor:
        """Add ``tensor`` up over all processes."""
        ...

    def at(self, round: int, stage: str) -> None:
        """Note where this process is (so that a death can be reported with round and stage)."""
        ...
