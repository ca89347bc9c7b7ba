"""Tests of sites need the extra ``federated``, which ``dev`` has."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("flwr") else ["test_*.py"]
