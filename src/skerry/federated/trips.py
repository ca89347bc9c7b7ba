"""Messages under way between the server and its sites.

Flower's own ``send_and_receive`` looks for replies every three seconds; this looks as often as it is told to. Messages
that nobody waits for any more are dropped: their replies are never read.
"""

import time
from collections.abc import Iterator
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

About = TypeVar("About")


class Trips(Generic[About]):
    """Messages under way, each with what it is about.

    Args:
        grid: of Flower.
        poll_s: seconds between two looks for replies.
    """

    def __init__(self, grid: Grid, poll_s: float) -> None:
        self._grid, self._poll_s = grid, poll_s
        self.open: dict[str, About] = {}

    def send(self, node: int, kind: str, content: RecordDict, about: About, ttl_s: float) -> bool:
        """Send a message to a node; return whether Flower took it.

        Args:
            node: Flower's number of it.
            kind: which function of the client app it is for.
            content: of the message.
            about: comes back with the reply.
            ttl_s: seconds after which Flower refuses a reply.
        """
        ids = list(self._grid.push_messages([Message(content, node, kind, ttl=ttl_s)]))
        if ids and ids[0]:
            self.open[ids[0]] = about
        return bool(ids and ids[0])

    def arrived(self) -> Iterator[tuple[About, Message]]:
        """Yield what has come back since the last look; a message that cannot be delivered comes back as an error."""
        if self.open:
            for message in self._grid.pull_messages(list(self.open)):
                if message.metadata.reply_to_message_id in self.open:
                    yield self.open.pop(message.metadata.reply_to_message_id), message

    def wait(self, until: float) -> Iterator[tuple[About, Message]]:
        """Yield replies as they come, until all are there or the time (``time.monotonic``) is over."""
        while True:
            yield from self.arrived()
            if not self.open or time.monotonic() >= until:
                return
            time.sleep(self._poll_s)
