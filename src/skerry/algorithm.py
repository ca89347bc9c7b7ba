"""An algorithm: who holds what, for how long, and what happens to optimizer state.

The published ones are in ``skerry.algorithms``, a few lines each.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

from skerry.clients import Clients, HeldByClients, Timeline
from skerry.merge.outer import Outer
from skerry.merge.server import Server
from skerry.partitions.assignment import Partition
from skerry.partitions.limited import Limited
from skerry.trained import Apart, Given, Trained
from skerry.whole_number import check_whole_number

StatePolicy = Literal["reset", "travel", "stay"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A method, as a choice of parts.

    Args:
        name: in messages, files and tables.
        partition: who holds which units in each round.
        local_steps: steps between two exchanges.
        optimizer_state: ``"reset"``: every round starts with a fresh optimizer. ``"travel"``: the state of an element
            is sent and averaged with its weight, which costs the bytes of the state. ``"stay"``: each worker keeps its
            own; only for workers that keep their units.
        overlap: with overlap k > 0, parameters that all workers hold whole are averaged during the first k steps of
            the next round. Worker w starts these steps with its own values V_w (a refused worker with those it started
            the last round with), and is corrected after them: W_w <- W_w + mean_v V_v - V_w. This hides the time of
            the transfer, but the gradients of these steps are taken at points that differ by V_w - mean_v V_v. The
            full model is the mean, as without overlap. Zhou et al.: DaSGD, 2020, arXiv 2006.00441, delays the
            averaging of local SGD like this.
        outer: an optimizer that takes the workers' mean move as its gradient; None: weights become the workers' mean.
            Only for workers that keep their units.
        proximal: mu of FedProx: (mu / 2) ||W_w - W||^2 is added to a worker's loss, where W is what it got; 0: none.
        by_samples: whether the mean over workers weights each by its number of samples; False: all count the same.
            Only where one process, or a server of sites, has what all workers hand over.
        synchronous: whether gradients are averaged over all workers in every step, which needs one process per worker.
        trains: what is trained: the given model, or other nets in its place (``trained.py``).
        rounds_per_cycle: rounds after which every subnet has been with every worker; fewer rounds give a warning.
        clients: the owners of the data, of whom as many train in a round as the partition has workers; others in each
            round. None: each worker has its own data. Only where all workers run in one process.
        server: takes in replies of clients as they come: a round is as many replies as the partition has workers.
            None: a round ends when all workers are done.

    Raises:
        ValueError: a value out of range, ``overlap`` with an outer optimizer, ``proximal`` or a synchronous algorithm,
            ``by_samples`` with one of these or with ``server``, or clients that would keep state.

    Example:
        >>> from skerry.partitions import Disjoint
        >>> Algorithm(name="IST", partition=Disjoint(4), local_steps=20).keeps
        False
    """

    name: str
    partition: Partition
    local_steps: int
    optimizer_state: StatePolicy = "reset"
    overlap: int = 0
    outer: Outer | None = None
    proximal: float = 0.0
    by_samples: bool = False
    synchronous: bool = False
    trains: Trained = field(default_factory=Given)
    rounds_per_cycle: int = 1
    clients: Clients | None = None
    server: Server | None = None

    @property
    def num_parts(self) -> int:
        """The number of parts that the data is in: one per client, or else per worker."""
        return self.partition.num_workers if self.clients is None else self.clients.num

    def timeline(self) -> Timeline | None:
        """Return which clients train when; None without clients."""
        if self.clients is None:
            return None
        num, server = self.partition.num_workers, self.server
        active = num if server is None else server.active
        return Timeline(self.clients, active=active, per_round=num, waits=server is None)

    def most_steps(self, num_rounds: int) -> list[int]:
        """Return how many local steps each part of the data is used for in ``num_rounds`` rounds, at most."""
        timeline = self.timeline()
        if timeline is None:
            return [num_rounds * self.local_steps] * self.num_parts
        turns = Counter(turn.client for round in range(num_rounds) for turn in timeline.turns(round))
        return [turns[client] * self.local_steps for client in range(self.num_parts)]

    def held_by(self) -> Partition | None:
        """Return who holds what: the partition, with a row per client where there are clients.

        None where it is not known in advance, since units are dealt by movement.
        """
        if self.server is not None and self.server.drops_moved is not None:
            return None
        timeline = self.timeline()
        if self.clients is None or timeline is None:
            return self.partition
        return HeldByClients(self.partition, timeline, self.clients.num)

    @property
    def keeps(self) -> bool:
        """Whether workers have state of their own from round to round, so that their units must not change."""
        return self.optimizer_state == "stay" or self.outer is not None

    @property
    def kept_tensors(self) -> int:
        """How many more tensors a worker keeps for each parameter: where the round began, and the outer momentum."""
        return 2 if self.outer is not None else int(self.proximal > 0)

    @property
    def why_same_workers(self) -> str:
        """Why a training cannot go on with another number of workers; empty if it can."""
        if isinstance(self.trains, Apart) and self.partition.covers:
            return f"'{self.name}' trains a net of its own for each worker; with nets= others may go on"
        if self.server is not None:
            return f"clients of '{self.name}' are under way"
        return f"the workers of '{self.name}' keep optimizer state of their own" if self.keeps else ""

    def __post_init__(self) -> None:
        check_whole_number("local_steps", self.local_steps, 1)
        check_whole_number("overlap", self.overlap, 0)
        if self.optimizer_state not in get_args(StatePolicy):
            raise ValueError(f"optimizer_state='{self.optimizer_state}': expected 'reset', 'travel' or 'stay'")
        if not 0 <= self.overlap <= self.local_steps:
            raise ValueError(f"overlap={self.overlap}: expected 0 (none) to local_steps={self.local_steps}")
        if not 0 <= self.proximal < math.inf:
            raise ValueError(f"proximal={self.proximal}: expected 0 (none) or more")
        if self.overlap and (self.outer or self.synchronous or self.proximal):
            raise ValueError(f"overlap={self.overlap}: '{self.name}' needs the mean before the next step; leave it out")
        if self.by_samples and (self.overlap or self.outer or self.synchronous or self.server):
            raise ValueError(
                f"by_samples=True: '{self.name}' has no mean of workers at the end of a round that could weight them "
                "(overlap, outer, synchronous, server); leave it out"
            )
        if self.clients is not None and (self.keeps or self.overlap or self.synchronous):
            raise ValueError(
                f"clients: other ones train in each round, so workers of '{self.name}' cannot keep state, overlap or "
                "average gradients; leave that out, or use optimizer_state='reset'"
            )
        if self.clients is not None and isinstance(self.partition, Limited):
            raise ValueError(
                f"clients: max_exposure={self.partition.max_exposure} limits what a worker sees, but other clients are "
                "workers in each round and would see more; leave one of the two out"
            )
        if self.server is not None and (self.clients is None or self.optimizer_state != "reset"):
            raise ValueError(f"server: '{self.name}' needs clients, and optimizer_state='reset'")
        self.timeline()
