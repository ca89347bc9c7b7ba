"""Clients: the owners of the data, some of whom train at a time, on a simulated clock.

Who trains when follows from the clients' declared speeds and a seed alone. So it is known in advance, nothing about it
is sent, and a resumed training goes on exactly.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.partitions.assignment import Assignment, Partition, none_held
from skerry.plan.dims import Axis
from skerry.randomness import generator
from skerry.whole_number import check_whole_number


@dataclass(frozen=True)
class Clients:
    """The owners of the data.

    Args:
        speeds: of each client. A *turn*, the local steps of one round, takes 1 / speed units of simulated time,
            whatever is trained in it: multiply by what a turn costs to compare methods. Transfers take no time.
        seed: of the choice of who trains.

    Raises:
        ValueError: there are no clients, or a speed is not a positive number.

    Example:
        >>> Clients.spread(3, 5.0).speeds  # turns of 1, 3 and 5 units of time
        (1.0, 0.3333333333333333, 0.2)
    """

    speeds: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.speeds or not all(0 < speed < math.inf for speed in self.speeds):
            raise ValueError(f"speeds={self.speeds}: expected a positive number per client")

    @classmethod
    def spread(cls, num: int, slowest: float = 1.0, seed: int = 0) -> "Clients":
        """Return ``num`` clients whose turns take 1 to ``slowest`` units of time, evenly spaced.

        Raises:
            ValueError: there are no clients, or ``slowest`` is below 1.
        """
        check_whole_number("clients", num, 1)
        if not 1 <= slowest < math.inf:
            raise ValueError(f"slowest={slowest}: expected at least 1, the time that the fastest client takes")
        return cls(tuple(1 / (1 + (slowest - 1) * k / max(1, num - 1)) for k in range(num)), seed)

    @property
    def num(self) -> int:
        """How many there are."""
        return len(self.speeds)

    def rank(self, client: int) -> float:
        """Return 0 for the fastest client to 1 for the slowest one."""
        order = sorted(range(self.num), key=lambda c: (-self.speeds[c], c))
        return order.index(client) / max(1, self.num - 1)


@dataclass(frozen=True)
class Turn:
    """One client's local steps, from its start to its reply.

    Attributes:
        number: of the start, from 0.
        client: who.
        nth: how many turns the client has started before.
        began: rounds that the server had finished when it started: the version of the model that it trains on.
        ends: when its reply comes.
    """

    number: int
    client: int
    nth: int
    began: int
    ends: float


class Timeline:
    """Who trains when.

    ``active`` clients train at any time, drawn from those that do not. A round is over after ``per_round`` replies.
    Whoever replies at the same time is heard before anybody starts again.

    Args:
        clients: of whom some train.
        active: how many train at a time; all clients: who has replied starts again.
        per_round: replies per round.
        waits: whether nobody starts before all who are active have replied.

    Raises:
        ValueError: more are active than there are, or a waiting server has other rounds.

    Example:
        >>> timeline = Timeline(Clients((1.0, 0.4)), active=2, per_round=1, waits=False)
        >>> [(turn.client, turn.ends, turn.began) for r in range(4) for turn in timeline.turns(r)]
        [(0, 1.0, 0), (0, 2.0, 1), (1, 2.5, 0), (0, 3.0, 2)]
    """

    def __init__(self, clients: Clients, *, active: int, per_round: int, waits: bool) -> None:
        if active > clients.num:
            raise ValueError(f"{active} workers train at a time, but there are {clients.num} clients; use more clients")
        assert not waits or per_round == active
        self._clients, self._active, self._per_round, self._waits = clients, active, per_round, waits
        self._starts, self._replies, self._beginning = list[Turn](), list[Turn](), dict[int, list[Turn]]()
        self._clock = self._run()

    def turns(self, round: int) -> list[Turn]:
        """Return the turns whose replies make ``round``, by number."""
        end = (round + 1) * self._per_round
        while len(self._replies) < end:
            next(self._clock)
        return sorted(self._replies[end - self._per_round : end], key=lambda turn: turn.number)

    def ends(self, round: int) -> float:
        """Return the time at which ``round`` is over."""
        return max(turn.ends for turn in self.turns(round))

    def starting(self, round: int) -> list[Turn]:
        """Return the turns that begin with the model as it is before ``round``."""
        while not self._starts or self._starts[-1].began <= round:
            next(self._clock)
        return self._beginning.get(round, [])

    def under_way(self, round: int) -> list[Turn]:
        """Return the turns that have begun before ``round`` and reply in it or later."""
        begun = [turn for r in range(round) for turn in self.starting(r)]
        over = {turn.number for turn in self._replies[: round * self._per_round]}
        return [turn for turn in begun if turn.number not in over]

    def _run(self) -> Iterator[None]:
        idle, turns = list(range(self._clients.num)), [0] * self._clients.num
        running: list[tuple[float, int, Turn]] = []
        now = 0.0
        while True:
            for client in self._draw(idle, self._active - len(running)):
                began, number = len(self._replies) // self._per_round, len(self._starts)
                turn = Turn(number, client, turns[client], began, now + 1 / self._clients.speeds[client])
                idle.remove(client)
                turns[client] += 1
                self._starts.append(turn)
                self._beginning.setdefault(began, []).append(turn)
                heapq.heappush(running, (turn.ends, number, turn))
            now = running[0][0]
            while running and (self._waits or running[0][0] == now):
                now, _, turn = heapq.heappop(running)
                self._replies.append(turn)
                idle.append(turn.client)
            yield

    def _draw(self, idle: Sequence[int], num: int) -> list[int]:
        found = sorted(idle)
        if num == len(found):
            return found
        order = torch.randperm(len(found), generator=generator(self._clients.seed, "client", len(self._starts)))
        return [found[k] for k in order[:num].tolist()]


@dataclass(frozen=True)
class HeldByClients:
    """Which client holds what in a round, where ``partition`` says it of workers; others hold nothing.

    Args:
        partition: of the algorithm.
        timeline: of its clients.
        num_workers: how many clients there are.
    """

    partition: Partition
    timeline: Timeline
    num_workers: int
    covers: ClassVar[bool] = False

    def assign(self, axes: Sequence[Axis], round: int) -> Assignment:
        """Return a row per client: what it was handed out for ``round``, and what it has trained when that is over."""
        held = none_held(self.num_workers, axes)
        for turn in (*self.timeline.starting(round), *self.timeline.turns(round)):
            dealt, worker = divmod(turn.number, self.partition.num_workers)
            held[turn.client] |= self.partition.assign(axes, dealt).held[worker]
        return Assignment(held)

    def share(self, axes: Sequence[Axis], round: int) -> Tensor:
        """Return how likely a subnet has each unit."""
        return self.partition.share(axes, round)
