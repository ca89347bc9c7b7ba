"""Published methods and their rivals, one file each, as choices of parts (``skerry.algorithm``)."""

from skerry.algorithm import Algorithm
from skerry.algorithms.asynchronous.asyncdrop import asyncdrop
from skerry.algorithms.asynchronous.fedbuff import fedbuff
from skerry.algorithms.ddp import ddp
from skerry.algorithms.diloco import diloco
from skerry.algorithms.ensemble import ensemble
from skerry.algorithms.federated_dropout import federated_dropout
from skerry.algorithms.fedrolex import fedrolex
from skerry.algorithms.heterofl import heterofl
from skerry.algorithms.ist import ist
from skerry.algorithms.local_sgd import local_sgd
from skerry.algorithms.narrow import narrow
from skerry.algorithms.relay import relay
from skerry.algorithms.resist import resist
from skerry.algorithms.single import single

__all__ = [
    "Algorithm", "asyncdrop", "ddp", "diloco", "ensemble", "fedbuff", "federated_dropout", "fedrolex", "heterofl",
    "ist", "local_sgd", "narrow", "relay", "resist", "single",
]  # fmt: skip
