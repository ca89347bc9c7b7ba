"""Somebody who reaches the port but has no key of a site: each function returns what the server let it do."""

import ssl
from contextlib import suppress
from pathlib import Path
from socket import create_connection
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from skerry.federated.join import _client, _private_key

_HANDSHAKE_BYTES = 4096
"""More than what a server says before it knows whom it talks to."""


def with_another_key(port: int, folder: Path, request: Path) -> list[str]:
    """Register, come as a site, ask for its work, and send its last update as its own, with a key of nobody.

    Args:
        port: of the server.
        folder: with ``certs`` and ``stranger.key``.
        request: a file with what a site has sent, which the stranger knows.
    """
    private = _private_key(folder / "stranger.key")
    public, let = public_key_to_bytes(private.public_key()), list[str]()
    pushed = PushMessagesRequest.FromString(request.read_bytes())
    requests: list[tuple[str, Any]] = [
        ("RegisterNode", RegisterNodeFleetRequest(public_key=public)),
        ("ActivateNode", ActivateNodeRequest(public_key=public, heartbeat_interval=30.0)),
        ("PullMessages", PullMessagesRequest(node=pushed.node)),
        ("PushMessages", pushed),
    ]
    with _client(f"127.0.0.1:{port}", (folder / "certs" / "ca.crt").read_bytes(), private) as client:
        for name, each in requests:
            with suppress(httpx.HTTPError):
                getattr(client, name)(each)
                let.append(name)
    return let


def with_the_same_bytes(port: int, recorded: bytes) -> list[str]:
    """Send the encrypted bytes of an earlier connection again: the server ends it where its own keys are others."""
    num_bytes = 0
    with suppress(OSError), create_connection(("127.0.0.1", port), 10) as end:
        end.sendall(recorded)
        while chunk := end.recv(2**16):
            num_bytes += len(chunk)
    return [f"{num_bytes} bytes of answers"] if num_bytes > _HANDSHAKE_BYTES else []


def with_too_much(port: int, folder: Path) -> list[str]:
    """Send a request of 17 MB, without a key."""
    context = ssl.create_default_context(cafile=str(folder / "certs" / "ca.crt"))
    with suppress(httpx.HTTPError), httpx.Client(verify=context, timeout=60.0) as client:
        url = f"https://127.0.0.1:{port}/v1/fleet/push-object"
        told = client.post(url, content=b"\0" * (17 * 2**20), headers={"content-type": "application/protobuf"})
        return [] if told.status_code >= 400 else [f"{told.status_code}"]
    return []
