"""Discovery: what can be dealt out of a model, found by running it once."""

from skerry.discovery.blocks import Blocks
from skerry.discovery.discover import discover
from skerry.discovery.verify import verify

__all__ = ["Blocks", "discover", "verify"]
