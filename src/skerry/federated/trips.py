"""Messages under way between the server and its sites.

Flower's own ``send_and_receive`` looks for replies every three seconds; this looks as often as it is told to.
"""

import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from httpx import HTTPError

from skerry.federated.messages import Refused

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

    def arrived(self) -> Iterator[tuple[About, Message | Refused]]:
        """Yield what has come back since the last look, or why it is refused.

        A message that cannot be delivered comes back as an error.
        """
        for number in list(self.open):  # one by one: what is wrong with a reply costs no other
            try:
                pulled: list[Message | Refused] = list(self._grid.pull_messages([number]))
            except (HTTPError, OSError):  # of the connection to a SuperLink
                raise
            except Refused as refused:
                pulled = [refused]
            # The bytes are a site's, and Flower's readers have no error of their own: KeyError, AttributeError,
            # DecodeError and others, by what is wrong. One that is not in a list would end the training of all.
            except Exception as error:
                pulled = [Refused(f"it cannot be read ({type(error).__name__})")]
            for message in pulled[:1]:
                yield self.open.pop(number), message

    def give_up(self) -> None:
        """Drop what is still under way, whose replies are never read; ``Fleet`` frees its memory."""
        if (forget := getattr(self._grid, "forget", None)) is not None:
            forget(self.open)
        self.open.clear()

    def wait(
        self, until: float, meanwhile: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[About, Message | Refused]]:
        """Yield replies as they come, until all are there or the time is over.

        Args:
            until: that time (``time.monotonic``).
            meanwhile: called between two looks.
        """
        while True:
            is_last = time.monotonic() >= until  # so that there is a look after the time is over
            yield from self.arrived()
            if not self.open or is_last:
                return
            meanwhile()
            time.sleep(self._poll_s)
