"""The part of Flower's SuperLink that sites talk to, in the process of the server.

A whole SuperLink also lets whoever reaches its port start runs with code of their own. Here there are no such
functions: only what Flower calls the fleet is served. The server's own messages go through memory.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from flwr.app import Message, RecordDict
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, Status
from flwr.proto.task_pb2 import Task, TaskStatus
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.superlink.servicer.runtime import runtime_handlers

from skerry.federated.link import Link

_RUN, _TASK = 1, 1
KEEP_ALIVE_S = 60
"""Seconds that a connection may be idle. If it was ended while a site takes local steps, or is slow, the site's next
request could meet the end of it, and would be lost."""


@dataclass(frozen=True)
class Certificates:
    """Files of the server: its certificate with those above it, and its key."""

    certificate: Path
    key: Path


class Fleet:
    """What the sites of one run talk to.

    Args:
        keys: the public keys of the sites, in the order of their numbers; None: whoever comes may take part, and says
            which site it is.

    Attributes:
        state: Flower's, in memory: messages under way and nodes.
        grid: for ``Federated``.
        numbers: the site of each node; None without keys.
    """

    def __init__(self, keys: Sequence[bytes] | None = None) -> None:
        self.state = Link()
        self._factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, self.state.federation_manager, ObjectStoreFactory())
        self._factory.state_instance = self.state
        run = Run.create_empty(_RUN)
        run.primary_task_id, run.federation_id = _TASK, NOOP_FEDERATION_ID
        self.state.run_ids[_RUN] = RunRecord(run=run)
        task = Task(task_id=_TASK, run_id=_RUN, status=TaskStatus(status=Status.RUNNING))
        self.state.task_store[_TASK] = task
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = _RUN, _TASK, SUPERLINK_NODE_ID
        self.grid = _LocalGrid(self.state, task)
        self.grid.set_run(run)
        self.with_keys, self.numbers = keys is not None, dict[int, int]() if keys is not None else None
        for number, key in enumerate(keys or ()):
            cast(dict[int, int], self.numbers)[self.state.create_node(NOOP_FLWR_AID, "", key, 0)] = number

    @contextmanager
    def serving(self, host: str, port: int, certificates: Certificates | None) -> Iterator[int]:
        """Serve the fleet on a port; yield its number (of a free one, for 0).

        Raises:
            OSError: the port is taken, or a certificate cannot be read.
        """
        import socket

        import uvicorn

        files: dict[str, Any] = {}
        if certificates is not None:
            files = {"ssl_certfile": certificates.certificate, "ssl_keyfile": certificates.key}
        files |= {"timeout_keep_alive": KEEP_ALIVE_S}
        config = uvicorn.Config(self._app(), log_level="warning", access_log=False, ws="none", **files)
        config.load()  # certificates are read here, and not in the thread
        with socket.create_server((host, port)) as listening:
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()
            try:
                yield listening.getsockname()[1]
            finally:
                server.should_exit = True
                thread.join()

    def _app(self) -> Any:
        """Return the HTTP application: Flower's routes of the fleet, with the checks that its SuperLink has."""
        from fastapi import FastAPI
        from flwr.supercore.error import http_error_translator
        from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
        from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
        from flwr.superlink.routers.fleet.router import router
        from starlette.middleware import Middleware
        from starlette.middleware.base import BaseHTTPMiddleware

        app = FastAPI(
            openapi_url=None,
            middleware=[
                Middleware(_Bounded),
                Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
                Middleware(ProtobufTranslationMiddleware),
                Middleware(NodeAuthMiddleware),
            ],
        )
        app.state.linkstate_factory, app.state.enable_supernode_auth = self._factory, self.with_keys
        app.include_router(router)
        return app


class _LocalGrid(HttpGrid):  # type: ignore[misc]  # its class is not known to the type checker
    """Flower's grid, with what its requests would come to called directly."""

    def __init__(self, state: Link, task: Task) -> None:
        super().__init__(token="none")
        self._state = state
        names = {
            "GetNodes": runtime_handlers.get_nodes,
            "PushMessages": runtime_handlers.push_messages,
            "PullMessages": runtime_handlers.pull_messages,
            "PushObject": runtime_handlers.push_object,
            "PullObject": runtime_handlers.pull_object,
            "ConfirmMessageReceived": runtime_handlers.confirm_message_received,
        }
        calls = {name: (lambda request, call=call: call(request, state, task)) for name, call in names.items()}
        self._client = cast(Any, SimpleNamespace(close=lambda: None, **calls))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies that are here as a whole; Flower would wait for the rest of others.

        Raises:
            Refused: a reply is not taken, or its rest will never come.
        """
        found: Iterable[Message] = super().pull_messages([m for m in message_ids if not self._state.is_arriving(m)])
        return found

    def forget(self, message_ids: Iterable[str]) -> None:
        """Free the memory of messages that nobody waits for any more."""
        self._state.forget(set(message_ids))

    def _try_push_messages(self, run_id: int, messages: Iterable[Message]) -> list[str]:
        for message in messages:
            self._state.expect(message.metadata.message_id, _num_bytes(message.content))
        found: list[str] = super()._try_push_messages(run_id, messages)
        return found


def _num_bytes(content: RecordDict) -> int:
    arrays = (array for record in content.array_records.values() for array in record.values())
    numbers = content.config_records.values()
    return sum(len(array.data) for array in arrays) + sum(len(record.deflate()) for record in numbers)


class _Bounded:
    """Refuses requests that say they are, or turn out to be, larger than any that a site has a reason to send."""

    MOST_BYTES = 16 * 2**20
    """Flower sends arrays in parts of 5 MB."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        num_bytes = 0

        async def bounded() -> Any:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.MOST_BYTES:
                raise ValueError(f"a request of more than {self.MOST_BYTES} bytes")
            return message

        await self._app(scope, bounded if scope["type"] == "http" else receive, send)
