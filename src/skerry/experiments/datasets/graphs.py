"""Graphs with features and labels of nodes: Cora, CiteSeer and WordNet."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skerry.experiments.datasets.archives import read_made
from skerry.graphs.geometric import geometric


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph in memory.

    Attributes:
        starts, features: the features of node i, which are all 1 there and 0 elsewhere, are
            ``features[starts[i] : starts[i + 1]]``; int64.
        num_features, num_classes: numbers.
        edges: pairs of nodes, int64, (2, edges), each once, in no direction.
        label: class of each node, int64; -1: none.
        train, val, test: which nodes are for what, bool.
    """

    starts: Tensor
    features: Tensor
    num_features: int
    num_classes: int
    edges: Tensor
    label: Tensor
    train: Tensor
    val: Tensor
    test: Tensor

    def edge_index(self) -> Tensor:
        """Return the edges in both directions, (2, 2 edges), as PyTorch Geometric expects them."""
        return torch.cat([self.edges, self.edges.flip(0)], 1)

    def x(self, nodes: Tensor) -> Tensor:
        """Return the features of ``nodes``, float32, (nodes, features)."""
        lengths = self.starts[nodes + 1] - self.starts[nodes]
        row = torch.arange(len(nodes)).repeat_interleave(lengths)
        within = torch.arange(len(row)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        x = torch.zeros(len(nodes), self.num_features)
        x[row, self.features[self.starts[nodes].repeat_interleave(lengths) + within]] = 1
        return x

    def data(self) -> Any:
        """Return it as ``Data`` of PyTorch Geometric, with the features as a sparse matrix (CSR).

        Raises:
            ValueError: PyTorch Geometric is not installed.
        """
        size = (len(self.label), self.num_features)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # such matrices are in beta
            x = torch.sparse_csr_tensor(self.starts, self.features, torch.ones(len(self.features)), size)
        masks = {"train_mask": self.train, "val_mask": self.val, "test_mask": self.test}
        return geometric("data").Data(x=x, edge_index=self.edge_index(), y=self.label, num_nodes=size[0], **masks)


def cora() -> Graph:
    """Return Cora: 2,708 papers in 7 classes, 5,278 citations; the Planetoid split, 20 nodes per class to train on.

    Raises:
        DataError: ``fetch`` has not made it on this machine and ``$SKERRY_DATA`` has none, or the file is altered.
    """
    return _planetoid("cora")


def citeseer() -> Graph:
    """Return CiteSeer: 3,327 papers in 6 classes, 4,552 citations; the rest as in ``cora``."""
    return _planetoid("citeseer")


def wordnet() -> Graph:
    """Return WordNet 3.0: 117,659 synsets in 45 classes, 183,789 relations; features are the words of the glosses.

    Raises:
        DataError: as in ``cora``.
    """
    arrays = read_made("wordnet")
    return _graph(arrays, [arrays["split"] == part for part in range(3)])


def _planetoid(name: str) -> Graph:
    arrays = read_made(name)
    return _graph(arrays, [arrays[part] for part in ("train", "val", "test")])


def _graph(arrays: dict[str, NDArray[Any]], masks: list[NDArray[Any]]) -> Graph:
    starts, features, edges, label = (
        torch.from_numpy(arrays[key].astype(np.int64)) for key in ("x_indptr", "x_indices", "edges", "label")
    )
    num_features, num_classes = int(arrays["x_shape"][1]), int(label.max()) + 1
    return Graph(starts, features, num_features, num_classes, edges, label, *map(torch.from_numpy, masks))
