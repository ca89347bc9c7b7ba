"""The runtime of a server whose workers are sites: it has the full model, and no data."""

import math
import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from skerry.algorithm import Algorithm
from skerry.federated.elsewhere import Elsewhere
from skerry.federated.messages import CutOff, Number, Refused, read_numbers, read_tensors, reason_of, written
from skerry.federated.sites import Sites, TooFewSites
from skerry.federated.trips import Trips
from skerry.merge.aggregate import is_finite
from skerry.partitions.assignment import Assignment
from skerry.partitions.share import Share
from skerry.runtimes.runtime import Beginning, Handover, Report, Store
from skerry.runtimes.server_store import ServerStore
from skerry.runtimes.whole_model import WholeModel

TRAIN = "train.subnet"
_NOT_SECURE = (
    "Flower 1.41 makes the masks of SecAgg+ from seeds of 32 bits (its issue 7522), which a server can try out; and a "
    "site's update has no sum to hide in where the server takes replies one by one (asyncdrop, fedbuff), or where "
    "fewer than 3 sites hold a unit (ist, relay, ensemble): of the sum of two, each knows the other's"
)
_REPLY: dict[str, type] = {"token": str, "loss": float, "flop": float, "local_s": float}
_MOST_SAMPLES = 2**29
_MOST_CUT = 5  # rounds in a row of which nothing has come through
"""With fewer, float64 has the weighted sum of equal float32 values without rounding, for up to 2**29 in all."""


class Federated(Elsewhere):
    """Runs the workers of ``train`` or ``Session`` on sites that have dialled in (``data`` is an ``OnSites``).

    In each round every site whose turn it is gets its subnet, trains it on its own data and sends it back. A site that
    is not there, does not answer in time or sends something else than what was agreed costs its units' round: they keep
    their values. Where all sites answer, the model is that of the serial runtime, to the bit.

    Args:
        grid: what Flower gives to the function of a ``ServerApp``, or ``skerry serve``.
        deadline_s: seconds that a round may take.
        patience_s: seconds to wait for all sites before the first round, and before each for ``at_least``
            and one whose turn it is.
        at_least: the fewest sites that a round begins with.
        poll_s: seconds between two looks for replies.
        numbers: the site of each of Flower's nodes, where nodes have keys; None: each says it itself.
        job: sent with each message: what a site needs to know to make its part (``client_app``).
        secure_aggregation: refused with the reason, for all methods: see docs/federated.md.

    Raises:
        ValueError: a number is out of range, or ``secure_aggregation`` is asked for.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        deadline_s: float = 600.0,
        patience_s: float = 600.0,
        at_least: int = 1,
        poll_s: float = 0.05,
        numbers: Mapping[int, int] | None = None,
        job: str = "",
        secure_aggregation: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("deadline_s", deadline_s), ("patience_s", patience_s), ("poll_s", poll_s)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: expected a positive number of seconds")
        if at_least < 1:
            raise ValueError(f"at_least={at_least}: expected 1 or more sites")
        if secure_aggregation:
            raise ValueError(f"secure_aggregation=True: {_NOT_SECURE}; leave it out")
        self.deadline_s, self.patience_s, self.at_least, self.job = deadline_s, patience_s, at_least, job
        self._grid, self._poll_s, self._numbers = grid, poll_s, numbers

    def keep(self, beginning: Beginning) -> Store:
        """Make a store that asks sites.

        Raises:
            ValueError: the algorithm or the model needs what only workers beside the data can do.
        """
        algorithm = beginning.algorithm
        assert algorithm is not None
        _check(algorithm, beginning)
        self.sites = Sites(
            self._grid, algorithm.num_parts, self.settings, job=self.job,
            poll_s=self._poll_s, ttl_s=self.deadline_s, numbers=self._numbers,
        )  # fmt: skip
        return (LateFromSites if algorithm.server is not None else FromSites)(beginning, self)

    def trips(self) -> Trips[Any]:
        """Return the trips of a round."""
        return Trips(self._grid, self._poll_s)


class FromSites(WholeModel):
    """The store of the server: sites train the workers' subnets."""

    def __init__(self, beginning: Beginning, runtime: Federated) -> None:
        super().__init__(beginning)
        assert beginning.algorithm is not None
        self._steps, self._timeline_or_none = beginning.algorithm.local_steps, beginning.timeline
        self._runtime, self._next, self._is_first, self._cut_rounds = runtime, beginning.round, True, 0
        self._never_finite = {name for name, tensor in self.tensors.items() if not is_finite({name: tensor})}

    def exchange(self, mine: list[Handover], then: Assignment, *, overlap: bool = False) -> list[Report]:
        """Send each worker's subnet to its site, wait for what comes back, and aggregate it."""
        handed = self._ask_sites()
        num = len(handed)
        self.bytes_sent += sum(tensor.nbytes for h in handed for tensor in h.tensors.values()) / num
        if any(each.report.good for each in handed):  # else one site could end the training of all
            handed = [replace(each, report=replace(each.report, counts=False)) for each in handed]
        reports = super().exchange(handed, then)
        self._next += 1
        return reports

    def _ask_sites(self) -> list[Handover]:
        runtime, sites, trips = self._runtime, self._runtime.sites, self._runtime.trips()
        num, token = self.assignment.num_workers, secrets.token_hex(8)
        turn = {self._client(worker) for worker in range(num)}
        sites.wait_for(runtime.at_least, time.monotonic() + runtime.patience_s, turn, all_of_them=self._is_first)
        self._is_first = False
        handed = [_nothing(worker, "it is not there", counts=False) for worker in range(num)]
        asked: dict[int, tuple[int, dict[str, Tensor]]] = {}
        for worker in range(num):
            client = self._client(worker)
            if client in sites.here:
                units, tensors = self.part(worker)
                mask = np.zeros(self.plan.num_units, dtype=bool)
                mask[units.numpy()] = True
                work: dict[str, Number] = {"token": token, "round": self._next, "worker": worker, "steps": self._steps}
                work |= {"units": np.packbits(mask).tobytes(), "job": runtime.job}
                content = written(work, tensors)
                if trips.send(sites.here[client], TRAIN, content, worker, runtime.deadline_s):
                    asked[worker] = client, tensors
        was_cut_off = False
        for worker, message in trips.wait(time.monotonic() + runtime.deadline_s, meanwhile=sites.look):
            client, sent = asked.pop(worker)
            handed[worker] = self._taken(worker, client, message, token, sent)
            was_cut_off |= isinstance(message, CutOff)
        for worker, (client, _) in asked.items():
            warnings.warn(f"round {self._next}: site {client} has not answered in time", stacklevel=2)
            sites.doubt(client)
            handed[worker] = _nothing(worker, "it has not answered in time", counts=False)
        trips.give_up()
        self._cut_rounds = self._cut_rounds + 1 if was_cut_off and not any(h.report.good for h in handed) else 0
        if self._cut_rounds == _MOST_CUT:
            raise TooFewSites(
                f"no reply has come through in {_MOST_CUT} rounds, connections were cut off: does a proxy limit how "
                "large a request may be?"
            )
        return handed

    def _taken(
        self, worker: int, client: int, message: Message | Refused, token: str, sent: Mapping[str, Tensor]
    ) -> Handover:
        """Return what a worker hands over by its site's reply; its report is not good if anything is wrong with it."""
        if isinstance(message, Message) and message.has_error():
            told = reason_of(message)
            warnings.warn(f"round {self._next}: site {client} is lost ({told})", stacklevel=2)
            if message.error.code != ErrorCode.CLIENT_APP_RAISED_EXCEPTION:  # else it is there
                self._runtime.sites.doubt(client)
                return _nothing(worker, f"it is lost: {told}", counts=False)
            return _nothing(worker, f"an error: {told}")
        try:
            if isinstance(message, Refused):
                raise message
            found = read_numbers(message.content, _REPLY | ({"num_samples": int} if self._by_samples else {}))
            if found["token"] != token:
                raise Refused("it answers another message")
            if not 0 < (num_samples := found.get("num_samples", 1)) <= _MOST_SAMPLES:
                raise Refused(f"num_samples={num_samples}, expected 1 to {_MOST_SAMPLES}")
            tensors = read_tensors(message.content, sent)
        except ValueError as error:
            warnings.warn(f"round {self._next}: what site {client} sent is refused: {error}", stacklevel=2)
            # A network that cuts replies off may be better in the next round, and no advice on code or rates helps.
            return _nothing(worker, str(error), counts=not isinstance(error, CutOff))
        watched = {name: tensor for name, tensor in tensors.items() if name not in self._never_finite}
        good = math.isfinite(found["loss"]) and is_finite(watched)
        flop, local_s = (found[name] if 0 <= found[name] < math.inf else 0.0 for name in ("flop", "local_s"))
        placed = {name: tensor.to(self._device) for name, tensor in tensors.items()}
        return Handover(placed, Report(worker, good, found["loss"], flop, local_s, num_samples=num_samples))

    def _client(self, worker: int) -> int:
        """Return the site that trains a worker's subnet in the next round."""
        timeline = self._timeline_or_none
        return worker if timeline is None else timeline.turns(self._next)[worker].client


class LateFromSites(FromSites, ServerStore):
    """The store of a server that waits for nobody, on the simulated clock: sites train what their turns began with."""


def _nothing(worker: int, fault: str, *, counts: bool = True) -> Handover:
    return Handover({}, Report(worker, False, math.nan, 0.0, 0.0, counts=counts, fault=fault))


def _check(algorithm: Algorithm, beginning: Beginning) -> None:
    """Raise ValueError unless the algorithm and the model can be trained on sites."""
    kept = algorithm.optimizer_state != "reset" or algorithm.outer is not None
    if kept or algorithm.overlap or algorithm.synchronous:
        what = "optimizer state or an outer optimizer" if kept else "workers that wait for each other in local steps"
        raise ValueError(
            f"runtime: sites come and go, but '{algorithm.name}' has {what}; use optimizer_state='reset' and "
            "overlap=0, or another method (ist, relay, narrow, heterofl, fedrolex, federated_dropout)"
        )
    norms = [name for name, module in beginning.model.named_modules() if isinstance(module, _BatchNorm)]
    if norms and bool((Share.of(algorithm.partition, beginning.plan.axes, 0).alone < 1).any()):
        raise ValueError(
            f"runtime: {norms[0]} is a batch norm, whose statistics the full model of '{algorithm.name}' needs from "
            "data, which the server does not see; use group norms, or a method that shares one net (narrow, local_sgd)"
        )
