"""What the round loop asks of a runtime: to run workers, and to keep the full model between rounds."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skerry.algorithm import Algorithm
from skerry.clients import Timeline
from skerry.partitions.assignment import Assignment
from skerry.partitions.share import Share
from skerry.plan.table import Plan
from skerry.weights.source import Source


@dataclass(frozen=True)
class Report:
    """What every process learns about a worker's local steps.

    Attributes:
        worker: its number.
        good: whether its loss, weights, statistics and momenta are finite; otherwise its piece is refused.
        loss: mean training loss of the round.
        flop: floating-point operations it spent.
        local_s: seconds it spent in local steps.
        bytes_due: bytes it has to send in this exchange, by the assignments; the store fills it in.
        counts: whether it tells against the training if it is not good: a site that is lost, or one of several that
            fails or sends nonsense, does not.
        fault: what is wrong with what a site sent; empty where that is only that it is not finite.
        num_steps: the local steps it took; only its own process knows.
        num_samples: that its data has; 0 where the algorithm does not ask for it.
    """

    worker: int
    good: bool
    loss: float
    flop: float
    local_s: float
    bytes_due: float = 0.0
    counts: bool = True
    fault: str = ""
    num_steps: int = 0
    num_samples: int = 0


@dataclass(frozen=True)
class Change:
    """What a change of the processes of an elastic run meant.

    Attributes:
        round: the first one with these members.
        members: from then on.
        joined: members that are new.
        lost: members that are gone.
        units_lost: units that nobody has trained in the round before.
        unrecorded: whether that round has no record yet.
        train_loss: mean over its workers that count; NaN if it is not known.
        refused: its workers that were refused; what those of lost members did does not count either.
        speeds: local steps per second of each member in its latest round, 0 where it has none.
    """

    round: int
    members: tuple[str, ...]
    joined: tuple[str, ...]
    lost: tuple[str, ...]
    units_lost: int
    unrecorded: bool = False
    train_loss: float = math.nan
    refused: tuple[int, ...] = ()
    speeds: tuple[float, ...] = ()

    def __str__(self) -> str:
        came = [f"{uid} joined" for uid in self.joined] + [f"{uid} is lost" for uid in self.lost]
        units = [f"{self.units_lost} units lost their round"] if self.units_lost else []
        return (
            f"{len(self.members)} process(es) from round {self.round} on: {', '.join([*came, *units]) or 'as before'}"
        )


@dataclass(frozen=True)
class Handover:
    """What a worker hands over at the end of its local steps: its narrow tensors by name, and a report."""

    tensors: Mapping[str, Tensor]
    report: Report


RESTING = "resting::"
"""Prefix of the name of a tensor: the part of it that a process owns (``exchange/owners.py``)."""

KEPT = "kept::"
"""Prefix of worker and name of a tensor: what a worker keeps for itself and never sends."""


def with_worker(prefix: str, of_workers: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of workers under the names ``prefix`` + worker + ``::`` + name, as in a checkpoint."""
    return {f"{prefix}{worker}::{name}": t for worker, own in of_workers.items() for name, t in own.items()}


class Saved(Protocol):
    """What processes stored after an earlier round: a checkpoint (``skerry.checkpoint``)."""

    @property
    def state(self) -> Any:
        """The state of the training then."""
        ...

    def own(self, worker: int, assignment: Assignment) -> Mapping[str, Tensor] | None:
        """Return what ``shards`` gave the process of ``worker``, None if it was not for ``assignment``."""
        ...

    def of_worker(self, prefix: str, worker: int) -> dict[str, Tensor]:
        """Return what is of ``worker`` under ``prefix`` (``with_worker``), by name; empty if no process stored it."""
        ...


class FullModel(Protocol):
    """The calibrated full model, to run and to read. No process needs to hold it whole."""

    @property
    def module(self) -> nn.Module:
        """Computes what the full model computes. Every process must call it equally often."""
        ...

    @property
    def inner(self) -> nn.Module:
        """Its modules as they are; their tensors may be on the meta device."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield its tensors by name, in the first process only. Every process must iterate over all of them."""
        ...

    def names(self, name: str) -> list[str]:
        """Return the names of a tensor in the model's ``state_dict``; empty for one that is not saved."""
        ...

    def whole(self) -> nn.Module:
        """Return it as an ordinary module; raise ValueError where no process holds it."""
        ...

    def mean_of_nets(self, of: Callable[[nn.Module], Tensor]) -> Tensor:
        """Return the mean of ``of(net)`` over its nets side by side; a model without such nets is one.

        A process computes it for the nets that it holds. Every process must call it. Raise ValueError where a process
        holds no net.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a store is made from.

    Attributes:
        model: the full model; its values are only read if ``source`` reads them.
        plan: its plan.
        source: where the values of its tensors come from.
        assignment: who holds what at first.
        device: where subnets are trained. A serial runtime has the full model there, too; parts that a process only
            owns stay on the CPU.
        start: the value that optimizer state starts with, by name (``optimizer_state.initial``).
        state: full-size optimizer state on the meta device that ``source`` has as well.
        saved: the checkpoint that ``source`` is, if training is resumed.
        algorithm: of the session; None: one without clients.
        timeline: which of its clients train when; None without clients.
        round: the next one.
    """

    model: nn.Module
    plan: Plan
    source: Source
    assignment: Assignment
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (it cannot change)
    start: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    saved: Saved | None = None
    algorithm: Algorithm | None = None
    timeline: Timeline | None = None
    round: int = 0


class Store(Protocol):
    """Keeps the full model between rounds, and the optimizer state that travels."""

    @property
    def kept(self) -> dict[int, dict[str, Tensor]]:
        """For each worker of this process, what it keeps for itself between rounds; the round loop writes it."""
        ...

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
        """Full-size tensors on the meta device, by name: everything that is stored."""
        ...

    @property
    def bytes_sent(self) -> float:
        """Bytes that this process has sent for exchanges so far; evaluation and export do not count."""
        ...

    def subnet(self, worker: int) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """Return the worker's subnet, to train in place, and its narrow optimizer state."""
        ...

    def late(self, worker: int) -> Iterator[tuple[str, Tensor]]:
        """Wait for what the last exchange lets arrive late; yield, by name, what to add to the parameters."""
        ...

    def exchange(self, mine: list[Handover], then: Assignment, *, overlap: bool = False) -> list[Report]:
        """Aggregate what all workers hand over and deal it out by ``then``.

        A refused worker begins the next round with what it began this round with.

        Args:
            mine: what the workers of this process hand over.
            then: who holds what in the next round.
            overlap: aggregate some parameters (``overlap.late_names``) while workers train on: ``subnet`` gives each
                worker its own values of them, and ``late`` the differences from the mean.

        Returns:
            The reports of all workers, in order.
        """
        ...

    def full(self, share: Share) -> FullModel:
        """Return the full model, scaled by ``share`` (``merge/calibrate.py``)."""
        ...

    def shards(self) -> Mapping[str, Tensor]:
        """Return what this process stores, by the names of a checkpoint.

        Narrow tensors have their own names, parts that it owns the prefix ``RESTING``, what its workers begin the next
        round with where the mean arrives late ``BEGAN``, and what they keep for themselves ``KEPT``.
        """
        ...


class Runtime(Protocol):
    """Runs some of the workers in this process.

    Attributes:
        goes_on: whether processes here are in the middle of the training: ``resume`` will return it.
        change: what it meant that processes have come or gone; None for those of the start.
        ending: raised by the session when it has saved a checkpoint, before the next round; None: it goes on.
    """

    rank: int
    num_processes: int
    goes_on: bool
    change: Change | None
    ending: Exception | None

    def mine(self, num_workers: int) -> list[int]:
        """Return the workers that run in this process."""
        ...

    def resume(self, algorithm: Algorithm, state: Any, sizes: Mapping[str, Tensor], plan: Plan) -> Any | None:
        """Return the training that other processes are in (``Saved``, a source, with ``state`` and ``sizes``).

        None where this process begins it.

        Args:
            algorithm: of the session.
            state: of a training that begins.
            sizes: full-size tensors of what is trained, by name.
            plan: its plan.

        Raises:
            ValueError: ``algorithm`` cannot run here.
        """
        ...

    def went_on(self, state: Any) -> None:
        """Take note of the state of the training after a round and its record, for processes that come later."""
        ...

    def keep(self, beginning: Beginning) -> Store:
        """Make the store."""
        ...

    def synchronized(self, module: nn.Module) -> tuple[nn.Module, Callable[[Tensor], None]]:
        """Return a module that computes what ``module`` does, and a backward that averages gradients over workers."""
        ...

    def total(self, tensor: Tensor) -> Tensor:
        """Add ``tensor`` up over all processes."""
        ...

    def agree(self, values: Mapping[str, str]) -> None:
        """Raise ValueError, in all processes, unless all have the same ``values`` by name; it says what differs."""
        ...

    def gather(self, text: str) -> list[str]:
        """Return the texts of all processes, in order."""
        ...

    def at(self, round: int, stage: str) -> None:
        """Note where this process is, so that an error can name round and stage."""
        ...
