"""Elastic runs: processes come and go, and a lost one costs a round of its units.

``elastic.py`` is what people use. ``membership.py`` is the protocol, with ``leases.py``; ``generation.py`` the runtime
while members are the same, with ``group.py``, and ``pieces.py`` how new members get their pieces.
"""

from skerry.runtimes.elastic.elastic import Elastic, serve_store
from skerry.runtimes.elastic.membership import TooFew

__all__ = ["Elastic", "TooFew", "serve_store"]
