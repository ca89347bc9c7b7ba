"""A site's connection that breaks: the real server, over HTTP, and requests that fail when the test says so."""

import asyncio
from functools import partial
from http.client import HTTPConnection, RemoteDisconnected

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import ConfigRecord
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient

from skerry.federated import client_app, join, trips
from skerry.federated.fleet import Fleet
from skerry.federated.messages import written
from skerry.federated.site import OVER
from skerry.federated.sites import BYE


@pytest.fixture
def key(tmp_path):
    """The file of a private key, and the public one."""
    private, public = generate_key_pairs()
    path = tmp_path / "key"
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return path, public_key_to_bytes(public)


def failing_once(monkeypatch, name: str, error: Exception) -> list[str]:
    """Let the first request of a kind fail; return the names of all requests, as they come."""
    made, left = list[str](), [error]
    for each in ("ActivateNode", "DeactivateNode", "PullMessages", "SendNodeHeartbeat"):
        original = getattr(FleetHttpClient, each)

        def call(client, request, each=each, original=original):
            made.append(each)
            if each == name and left:
                raise left.pop()
            return original(client, request)

        monkeypatch.setattr(FleetHttpClient, each, call)
    return made


def test_a_site_whose_connection_broke_goes_on_as_the_same_node(key, monkeypatch):
    """Else it would have to wait until the server has noticed that it was gone."""
    path, public = key
    fleet, said = Fleet([public]), list[str]()
    made = failing_once(monkeypatch, "PullMessages", httpx.ReadError("the network is away"))

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 3:  # it is back
            (node,) = fleet.grid.get_node_ids()
            trips.Trips[str](fleet.grid, 0.05).send(node, BYE, written({"job": ""}), "bye", 60.0)

    with fleet.serving("127.0.0.1", 0, None) as port:
        app = client_app(lambda context, job: pytest.fail("no site is needed"))
        join.join(f"127.0.0.1:{port}", app, certificate=None, key=path, node_config={}, say=say)
    joined = f"joined 127.0.0.1:{port}"
    away = f"the server at 127.0.0.1:{port} cannot be reached (ReadError); trying again"
    assert said == [joined, away, joined, "the training is over"]
    assert made.count("ActivateNode") == made.count("DeactivateNode") == 1


def test_a_site_whose_last_answer_is_lost_ends(key, monkeypatch):
    """The server may be gone by then, and dialling in again would never end."""
    path, public = key
    fleet, said = Fleet([public]), list[str]()

    def lost(client, node, app, context):
        context.state[OVER] = ConfigRecord({OVER: True})
        raise httpx.ReadError("the server is gone")

    def say(text: str) -> None:
        said.append(text)
        assert len(said) < 3, said

    monkeypatch.setattr(join, "answer_one", lost)
    with fleet.serving("127.0.0.1", 0, None) as port:
        join.join(f"127.0.0.1:{port}", None, certificate=None, key=path, node_config={}, say=say)
    assert said == [f"joined 127.0.0.1:{port}", "the training is over"]


def test_a_server_that_was_started_anew_gets_a_new_node(key, monkeypatch):
    path, public = key
    before, fleet = Fleet([public]), Fleet([public])
    (node,) = before.numbers or {}
    made = failing_once(monkeypatch, "", httpx.ReadError(""))
    private = join._private_key(path)
    with (
        fleet.serving("127.0.0.1", 0, None) as port,
        join._client(f"127.0.0.1:{port}", None, private) as client,
    ):
        old, new = (join.Node(node_id=n) for n in (node, *(fleet.numbers or {})))
        assert not join._is_there(client, old)
        assert join._is_there(client, new)
    assert made == ["SendNodeHeartbeat"] * 2


def test_a_connection_is_kept_while_a_site_is_silent_and_not_for_ever(monkeypatch):
    """A request that meets the end of its connection is lost. The server's clock is set, and nobody waits."""
    late_s, clock = [0.0], asyncio.BaseEventLoop.time
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: clock(loop) + late_s[0])
    monkeypatch.setattr(uvicorn, "Config", partial(uvicorn.Config, loop="asyncio"))

    def ask(connection: HTTPConnection) -> None:
        connection.request("GET", "/")
        connection.getresponse().read()

    with Fleet().serving("127.0.0.1", 0, None) as port:
        idle, other = HTTPConnection("127.0.0.1", port), HTTPConnection("127.0.0.1", port)
        idle.auto_open = 0
        idle.connect()
        for silent_s in (join._LEASE_S, 2 * join._LEASE_S):  # then the site would be taken for gone anyway
            ask(idle)
            late_s[0] += silent_s
            ask(other)  # the server has seen what time it is
        ask(idle)
        late_s[0] += 3600.0
        ask(other)
        with pytest.raises((RemoteDisconnected, ConnectionError)):
            ask(idle)
        idle.close()
        other.close()
