"""Tests of sites need the extra ``federated``, which ``dev`` has."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest

collect_ignore_glob = [] if find_spec("flwr") else ["test_*.py"]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time of the server, which goes on while it sleeps. Flower has the real one: deadlines are long."""
    now = [0.0]
    fake = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    for module in ("trips", "sites", "server", "speeds"):
        monkeypatch.setattr(f"skerry.federated.{module}.time", fake)
    return now
