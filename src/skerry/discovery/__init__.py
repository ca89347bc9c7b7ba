"""Discovery: what can be dealt out of a model, found by running it once."""

from skerry.discovery.discover import discover
from skerry.discovery.named.blocks import Blocks
from skerry.discovery.named.experts import Experts
from skerry.discovery.verify import verify
from skerry.model.group_norms import group_norms_

__all__ = ["Blocks", "Experts", "discover", "group_norms_", "verify"]
