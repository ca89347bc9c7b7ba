"""A site's connection to the server: it dials out, and comes back when the server or the network was away."""

import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, RegisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from skerry.federated.node import answer_one
from skerry.federated.site import OVER

_LEASE_S = 10.0
"""The server takes a site for gone after twice that time without a sign of life; the least that Flower allows."""
_SLOWEST_POLL_S = 0.5
_OF_TIME, _OF_NAME = (9, 10), (62, 64)  # what OpenSSL calls errors of certificates
_OF_NETWORK = (httpx.HTTPError, ObjectPullError, ObjectPushError, ConnectionError)


def join(
    address: str,
    app: ClientApp,
    *,
    certificate: Path | None,
    key: Path | None,
    node_config: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Answer the server's messages until it says that the training is over.

    Args:
        address: HOST:PORT of the server.
        app: what answers.
        certificate: file of the authority that has signed the server's certificate; None: nothing is encrypted.
        key: file of this site's private key; None: a new one, for a server that takes whoever comes.
        node_config: what the app gets to know of this site.
        say: told how it goes.

    Raises:
        ValueError: the key or the certificate cannot be read, the server's certificate is refused, or ``app`` cannot
            make this site's part of the training.
    """
    private, authority = _private_key(key), _authority(certificate)
    wait_s, node = 0.2, None
    while True:
        try:
            with _client(address, authority, private) as client:
                if node is None or not _is_there(client, node):
                    node = _begin(client, private, is_new=key is None)
                say(f"joined {address}")
                wait_s = 0.2
                _answer_all(client, node, app, node_config)
                say("the training is over")
                return
        except _OF_NETWORK as error:
            _raise_for_certificate(address, error)
            if isinstance(error, httpx.HTTPStatusError):
                told = "does not take this site: it does not know its key, or has it as there still"
            else:
                told = f"cannot be reached ({type(error).__name__})"
            say(f"the server at {address} {told}; trying again")
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 5.0)


def _private_key(path: Path | None) -> ec.EllipticCurvePrivateKey:
    if path is None:
        return generate_key_pairs()[0]
    try:
        found = load_ssh_private_key(path.read_bytes(), None)
    except Exception as error:  # as Flower's own reader
        raise ValueError(f"{path}: it cannot be read as a private key ({error}); make one with ssh-keygen") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path}: a key of another kind, expected one of: ssh-keygen -t ecdsa -b 384 -f {path.name}")
    return found


def _authority(path: Path | None) -> bytes | None:
    """Return the certificate in a file."""
    if path is None:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=path.read_text("ascii"))
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ValueError(f"{path}: it cannot be read as a certificate ({error}); get ca.crt from the server") from error
    return path.read_bytes()


def _raise_for_certificate(address: str, error: BaseException) -> None:
    """Raise ValueError if the server's certificate is refused: it would be so again."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLCertVerificationError):
        found = found.__cause__ or found.__context__
    if found is None:
        return
    remedy = "use the ca.crt of the authority that signed it (--certs)"
    if found.verify_code in _OF_TIME:
        remedy = "the server needs another one, unless the clock here is wrong"
    elif found.verify_code in _OF_NAME:
        remedy = "join by a name that it has, or let the server have one for this name (subjectAltName)"
    raise ValueError(f"{address}: the server's certificate is refused: {found.verify_message}; {remedy}") from error


def _client(address: str, authority: bytes | None, private: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
    return FleetHttpClient.from_server_address(
        address,
        authority is None,
        authority,
        interceptors=[NodeAuthHttpInterceptor(private, private.public_key())],
    )


def _begin(client: FleetHttpClient, private: ec.EllipticCurvePrivateKey, *, is_new: bool) -> Node:
    """Tell the server that this site is here; return its node."""
    public = public_key_to_bytes(private.public_key())
    if is_new:
        with suppress(httpx.HTTPStatusError):  # it is registered from an earlier connection
            client.RegisterNode(RegisterNodeFleetRequest(public_key=public))
    begun = client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=_LEASE_S))
    return Node(node_id=begun.node_id)


def _is_there(client: FleetHttpClient, node: Node) -> bool:
    """Tell the server that this site is here still; return whether it knows it from before the network was away.

    To begin anew would take until the server has noticed that the site was gone, two leases later.
    """
    with suppress(httpx.HTTPStatusError):  # a server that was started anew has another node for this key
        request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=_LEASE_S)
        return bool(client.SendNodeHeartbeat(request).success)
    return False


def _answer_all(client: FleetHttpClient, node: Node, app: ClientApp, node_config: dict[str, Any]) -> None:
    """Answer messages until the training is over, with signs of life beside it, also during local steps.

    Where the network fails the server is not told that this site leaves: it comes back.
    """
    context = Context(run_id=1, node_id=node.node_id, node_config=node_config, state=RecordDict(), run_config={})
    over = threading.Event()

    def live() -> None:
        while not over.wait(_LEASE_S / 3):
            with suppress(*_OF_NETWORK):
                client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=node, heartbeat_interval=_LEASE_S))

    beside = threading.Thread(target=live, daemon=True)
    beside.start()
    poll_s, leaves = 0.05, True
    try:
        while OVER not in context.state:
            poll_s = 0.05 if answer_one(client, node, app, context) else min(1.5 * poll_s, _SLOWEST_POLL_S)
            time.sleep(poll_s)
    except _OF_NETWORK:
        if OVER not in context.state:  # else only the answer to that is lost, and a server that ends is not there again
            leaves = False
            raise
    finally:
        over.set()
        if leaves:
            with suppress(*_OF_NETWORK):
                client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
        beside.join()
