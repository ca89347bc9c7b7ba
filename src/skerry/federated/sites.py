"""Which sites are there, as the server knows: nodes of Flower that have said which site they are."""

import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from skerry.federated.messages import CutOff, Refused, read_numbers, reason_of, written
from skerry.federated.trips import Trips
from skerry.runtimes.elastic.membership import TooFew

HELLO, BYE = "query.hello", "query.bye"


class TooFewSites(TooFew):
    """Fewer sites than are needed have joined in time."""


class Sites:
    """The sites of a run. A node that is new, or that was silent, is asked who it is, and counts once it has answered.

    Args:
        grid: of Flower.
        num: how many sites there are.
        settings: of the training, in words; a site that has others is refused.
        job: sent along.
        poll_s: seconds between two looks.
        ttl_s: seconds in which a node is to answer; then it is asked again.
        numbers: the site of each node, where nodes have keys; None: each says it itself.
        capacities: with which sites are to measure their speeds, in place of comparing settings; None: they are not.

    Attributes:
        here: the node of each site that has answered.
        speeds: local steps per second that they have measured.
    """

    def __init__(
        self,
        grid: Grid,
        num: int,
        settings: Mapping[str, str],
        *,
        job: str,
        poll_s: float,
        ttl_s: float,
        numbers: Mapping[int, int] | None = None,
        capacities: Sequence[float] | None = None,
    ) -> None:
        self.here, self.speeds = dict[int, int](), dict[int, float]()
        self._grid, self._num, self._numbers = grid, num, numbers
        self._settings, self._measures = dict(settings), capacities is not None
        self._hello = {"settings": json.dumps(self._settings), "job": job}
        if capacities is not None:
            self._hello["capacities"] = json.dumps(list(capacities))
        self._hellos, self._poll_s, self._ttl_s = Trips[int](grid, poll_s), poll_s, ttl_s
        self._refused: set[int] = set()

    def look(self) -> None:
        """Note who has come and who is gone; waits for nobody."""
        nodes = set(self._grid.get_node_ids())
        self.here = {site: node for site, node in self.here.items() if node in nodes}
        self._refused &= nodes  # with a key, a site that has mended its settings comes back as the same node
        for node, message in self._hellos.arrived():
            self._admit(node, message)
        asked = {*self.here.values(), *self._refused, *self._hellos.open.values()}
        for node in sorted(nodes - asked):
            self._hellos.send(node, HELLO, written(self._hello), node, self._ttl_s)

    def doubt(self, site: int) -> None:
        """Ask a site once more whether it is there, before it gets work again."""
        self.here.pop(site, None)

    def dismiss(self) -> None:
        """Tell all nodes that the training is over, also those that took no part: else they dial in for ever.

        A node that went on without an answer is told again, as it may not have got it.
        """
        trips, nodes = Trips[int](self._grid, self._poll_s), [*self._grid.get_node_ids()]
        patience_s = 5.0 + 0.4 * len(nodes)  # each look of a node takes the server some time
        for node in nodes:
            trips.send(node, BYE, written({"job": self._hello["job"]}), node, patience_s)
        for node, answer in trips.wait(time.monotonic() + patience_s):
            if isinstance(answer, CutOff) and node in set(self._grid.get_node_ids()):
                trips.send(node, BYE, written({"job": self._hello["job"]}), node, patience_s)

    def wait_for(self, at_least: int, until: float, turn: set[int], *, all_of_them: bool = False) -> None:
        """Wait for ``at_least`` sites and one of those in ``turn``, or rather for all of them if there is time.

        Args:
            at_least: how many.
            until: the time (``time.monotonic``) until which to wait.
            turn: the sites that the round is for; without any of them nothing would be trained.
            all_of_them: whether to wait for all until then.

        Raises:
            TooFewSites: they have not come in time.
        """
        self.look()
        num = self._num if all_of_them else at_least
        while (len(self.here) < num or turn.isdisjoint(self.here)) and time.monotonic() < until:
            time.sleep(self._poll_s)
            self.look()
        if len(self.here) < at_least:
            raise TooFewSites(
                f"{len(self.here)} of {self._num} sites are there, expected at least {at_least}; start more sites and "
                "resume, or ask for fewer (at_least)"
            )
        if turn.isdisjoint(self.here):
            raise TooFewSites(
                f"none of the sites whose turn it is ({', '.join(map(str, sorted(turn)))}) is there; start one of them "
                "and resume"
            )

    def _admit(self, node: int, message: Message | Refused) -> None:
        if isinstance(message, CutOff):
            return  # it is asked again
        try:
            if isinstance(message, Refused):
                raise message
            if message.has_error():
                if (
                    message.error.code != ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                ):  # it has not answered in time, or is gone: it is asked again
                    return
                raise Refused(f"it cannot begin ({reason_of(message)})")
            measured = {"steps_per_s": float} if self._measures else {}
            found = read_numbers(message.content, {"site": int, "differs": str, **measured})
            site = found["site"] if self._numbers is None else self._numbers.get(node, -1)
            if found["differs"]:  # a text of its own may be long, or steer a terminal
                which = found["differs"] if found["differs"] in self._settings else "one that is not known here"
                raise Refused(f"it has other settings: {which}; its log has both values")
            if found["site"] != site and self._numbers is not None:
                raise Refused(f"its key is that of site {site}, and it says {found['site']}; join with --site {site}")
            if not 0 <= site < self._num:
                raise Refused(f"it says that it is site {site}, expected 0 to {self._num - 1}")
            if not 0 < (speed := found.get("steps_per_s", 1.0)) < math.inf:
                raise Refused(f"steps_per_s={speed}, expected a positive number")
        except ValueError as error:
            self._refused.add(node)
            warnings.warn(f"node {node} takes no part: {error}", stacklevel=2)
            return
        self.speeds[site] = speed
        self.here[site] = node  # the latest one that says so: a site that was killed comes back as another node
