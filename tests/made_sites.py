"""Sites in the process of the test: the real server, site, Flower messages and state; only HTTP is left out.

Sites answer while the server looks for replies, one after the other, so that tests are deterministic and wait for
nothing.
"""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import NOOP_FLWR_AID
from flwr.proto.node_pb2 import Node
from flwr.superlink.servicer.fleet import fleet_handlers

from skerry.federated import Site, client_app
from skerry.federated.fleet import Fleet
from skerry.federated.node import answer_one

Change = Callable[[Message, Message], Message | None]
"""A function of a message and its reply that returns what is sent in place of the reply, or None for nothing."""


class MadeSites:
    """A fleet in memory, and the sites that have joined it."""

    def __init__(self) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        self.fleet = Fleet()
        state = self.fleet.state
        store = state.object_store
        self.client = SimpleNamespace(
            PullMessages=lambda request: fleet_handlers.pull_messages(request, state, store),
            PushMessages=lambda request: fleet_handlers.push_messages(request, state),
            PullObject=lambda request: fleet_handlers.pull_object(request, state),
            PushObject=lambda request: fleet_handlers.push_object(request, state),
            ConfirmMessageReceived=lambda request: fleet_handlers.confirm_message_received(request, state, store),
        )
        self.sites: dict[int, Any] = {}  # node -> what answers
        self.silent: set[int] = set()  # nodes that do not answer now
        pull = self.fleet.grid.pull_messages
        self.fleet.grid.pull_messages = lambda ids: (self.answer(), pull(ids))[1]

    @property
    def grid(self) -> Any:
        return self.fleet.grid

    def join(self, make: Callable[[], Site], change: Change | None = None) -> int:
        """Let a site join; return its node."""
        state = self.fleet.state
        node = state.create_node(NOOP_FLWR_AID, "", f"key {len(state.nodes)}".encode(), 0)
        state.activate_node(node, 1800)
        app = client_app(lambda context, job: make())

        def answered(message: Message, context: Context) -> Message:
            reply = app(message, context)
            return reply if change is None else change(message, reply) or reply

        self.sites[node] = answered
        return node

    def leave(self, node: int) -> None:
        """Let a node go, as after a clean end."""
        del self.sites[node]
        self.fleet.state.deactivate_node(node)

    def answer(self) -> None:
        """Let every site answer what there is."""
        for node, answered in [(n, a) for n, a in self.sites.items() if n not in self.silent]:
            context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            more = True
            while more and node not in self.silent:
                more = answer_one(self.client, Node(node_id=node), answered, context)
