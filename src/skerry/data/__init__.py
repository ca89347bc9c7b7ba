"""Data: which worker has which samples, and in which order each worker sees its own."""

from skerry.data.datasets import FromDataset, from_dataset
from skerry.data.kinds import kinds_of_text
from skerry.data.loaders import FromLoaders, from_loaders
from skerry.data.shards import Shards
from skerry.data.splits import split
from skerry.data.token_blocks import token_blocks

__all__ = [
    "FromDataset", "FromLoaders", "Shards", "from_dataset", "from_loaders", "kinds_of_text", "split", "token_blocks",
]  # fmt: skip
