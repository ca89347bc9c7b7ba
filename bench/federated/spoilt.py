"""A site that sends, when it is told to, something else than its update: what an adversary with its key can do.

It speaks Flower's own messages through Flower's own client. Orders are lines of a file, one for each message that is to
be spoilt; the site tells in another file in which round it has done so, before it sends anything.
"""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import httpx
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supernode.fleet_http_client import FleetHttpClient

from skerry.federated import join as joining
from skerry.federated.server import TRAIN

Change = Callable[[Message, RecordDict], RecordDict]
"""Of the content of an update, and the first one of this site, makes what is sent."""


def _with_bytes(change: Callable[[bytes], bytes]) -> Change:
    def changed(reply: Message, first: RecordDict) -> RecordDict:
        array = reply.content["tensors"]["packed"]
        array.data = change(array.data)
        return reply.content

    return changed


def _with_number(name: str, value: Any) -> Change:
    def changed(reply: Message, first: RecordDict) -> RecordDict:
        reply.content["numbers"][name] = value
        return reply.content

    return changed


def _many(reply: Message, first: RecordDict) -> RecordDict:
    return RecordDict({f"more {k}": ConfigRecord({"k": k}) for k in range(20)})


CONTENTS: dict[str, Change] = {
    "NaN: weights": _with_bytes(lambda data: b"\xff" * len(data)),
    "NaN: loss": _with_number("loss", math.nan),
    "corrupt: a byte less": _with_bytes(lambda data: data[:-1]),
    "corrupt: names of others": _with_number("header", "[]"),
    "corrupt: no token": _with_number("token", 1),
    "oversized: a MB more": _with_bytes(lambda data: data + b"\0" * 2**20),
    "oversized: many parts": _many,
    "replay: an update of an earlier round": lambda reply, first: first,
}
"""What takes the place of an update."""
UPLOADS = (
    "corrupt: bytes that are not what their name says",
    "oversized: a part of 17 MB",
    "replay: requests of an earlier round",
)
"""What is done to Flower's requests; the last one costs nothing: the update itself is sent, too."""


class Spoiling:
    """The orders of one site.

    Args:
        folder: of all sites' orders.
        site: whose.
    """

    def __init__(self, folder: Path, site: int) -> None:
        self._orders, self._told, self._request = (folder / f"{name}-{site}" for name in ("orders", "told", "request"))
        self._first, self._now = RecordDict(), ""
        self._sent: list[tuple[Send, Any]] = []  # for the last update
        self._earlier: list[tuple[Send, Any]] = []  # for the one before it

    def spoil(self, app: ClientApp) -> Callable[[Message, Context], Message]:
        """Return ``app`` with replies as ordered."""

        def answered(message: Message, context: Context) -> Message:
            reply = app(message, context)
            self._now = ""
            if message.metadata.message_type != TRAIN or reply.has_error():
                return reply
            self._now = self._next(message.content["numbers"]["round"])
            if self._now in CONTENTS:
                return Message(CONTENTS[self._now](reply, self._first), reply_to=message)
            self._first = self._first or reply.content
            return reply

        return answered

    def send(self, send: "Send", name: str, client: Any, request: Any) -> Any:
        """Make one of Flower's requests, as ordered."""
        if name == "PushMessages":
            draft = self._request.with_suffix(".new")
            draft.write_bytes(request.SerializeToString())
            draft.replace(self._request)
            self._earlier, self._sent = self._sent, []
            if self._now == UPLOADS[2]:
                for again, earlier in self._earlier:
                    with suppress(httpx.HTTPError):
                        again(client, earlier)
        self._sent.append((send, request))
        if name == "PushObject" and self._now in UPLOADS[:2]:
            changed = type(request)()
            changed.CopyFrom(request)
            data = request.object_content
            changed.object_content = data[:-1] + b"?" if self._now == UPLOADS[0] else data + b"\0" * (17 * 2**20)
            request, self._now = changed, ""
        return send(client, request)

    def _next(self, round: int) -> str:
        """Return what is ordered for this update, and tell."""
        orders, done = (p.read_text().splitlines() if p.exists() else [] for p in (self._orders, self._told))
        if len(done) >= len(orders):
            return ""
        what = orders[len(done)]
        if what.startswith("replay") and not self._first:
            return ""  # nothing to send again: in a later round
        with self._told.open("a") as file:
            file.write(json.dumps({"round": round, "what": what}) + "\n")
        return what


Send = Callable[[Any, Any], Any]
"""A function of Flower's client and a request."""


def install(folder: Path, site: int) -> None:
    """Let the ``join`` of this process do as ordered."""
    spoiling, original = Spoiling(folder, site), joining.join

    def join(address: str, app: ClientApp, **more: Any) -> None:
        original(address, cast(ClientApp, spoiling.spoil(app)), **more)

    joining.join = join
    for name in ("PushMessages", "PushObject"):
        send = getattr(FleetHttpClient, name)
        setattr(
            FleetHttpClient,
            name,
            lambda client, request, send=send, name=name: spoiling.send(send, name, client, request),
        )
