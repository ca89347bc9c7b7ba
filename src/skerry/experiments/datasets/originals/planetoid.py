"""Cora and CiteSeer with the Planetoid split, from the eight published files of each.

Nodes 0 .. are those of ``allx``, the first of them with labels to train on, then 500 to validate on; the nodes in
``test.index`` have the features and labels in ``tx`` and ``ty``. CiteSeer has nodes in between that no file describes:
no features, label -1. Edges are those of ``graph`` between two different nodes, once and undirected.

References: Yang, Cohen, Salakhutdinov: Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016,
arXiv 1603.08861.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.experiments.datasets.errors import DataError
from skerry.experiments.datasets.originals.official import PLANETOID, check, how_to_fetch, needed
from skerry.experiments.datasets.originals.pickles import array, csr_matrix, lists, parse
from skerry.experiments.datasets.originals.sparse import undirected

VALIDATION = 500


def planetoid(name: str, source: Path | None) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``cora.npz`` or ``citeseer.npz``.

    Args:
        name: "cora" or "citeseer".
        source: a folder with the eight files, or the root of PyG's ``Planetoid`` that has downloaded them.

    Raises:
        DataError: a file is missing or not the published one.
    """
    official, source = PLANETOID[name], needed(name, source)
    title = {"cora": "Cora", "citeseer": "CiteSeer"}[name]
    folders = (source, source / "raw", source / title / "raw")
    folder = next((folder for folder in folders if (folder / official["graph"].file).is_file()), None)
    if folder is None:
        raise DataError(f"{source}: no {official['graph'].file} in it; {how_to_fetch(name)}")
    contents = {}
    for part, file in official.items():
        check(folder / file.file, file)
        contents[part] = (folder / file.file).read_bytes()
    try:
        return graph(contents)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{folder}: the files ind.{name}.* can't be read ({error})") from error


def graph(contents: dict[str, bytes]) -> dict[str, NDArray[Any]]:
    """Return the graph in the eight files, by what they hold."""
    num_train = len(array(parse(contents["y"])))
    test_nodes = np.array(contents["test.index"].split(), np.int64)
    described = csr_matrix(parse(contents["allx"])), csr_matrix(parse(contents["tx"]))
    num_first, num_features = described[0][3]
    num = int(test_nodes.max()) + 1
    rows: list[tuple[NDArray[Any], NDArray[Any]]] = [(np.empty(0, np.float32), np.empty(0, np.int32))] * num
    label = np.full(num, -1, np.int16)
    for nodes, (data, indices, indptr, _), part in zip(
        (np.arange(num_first), test_nodes), described, ("ally", "ty"), strict=True
    ):
        label[nodes] = array(parse(contents[part])).argmax(1)
        for node, (start, end) in zip(nodes, pairwise(indptr), strict=True):
            order = indices[start:end].argsort()
            rows[node] = data[start:end][order], indices[start:end][order]
    neighbours = lists(parse(contents["graph"]))
    edges = undirected({(node, other) for node, others in neighbours.items() for other in others})
    if edges.min() < 0 or edges.max() >= num:
        raise ValueError(f"an edge to node {edges.max()}, expected nodes 0 to {num - 1}")

    def mask(nodes: Any) -> NDArray[np.bool_]:
        chosen = np.zeros(num, bool)
        chosen[nodes] = True
        return chosen

    return {
        "x_indptr": np.cumsum([0, *(len(indices) for _, indices in rows)]).astype(np.int32),
        "x_indices": np.concatenate([indices for _, indices in rows]).astype(np.int32),
        "x_data": np.concatenate([data for data, _ in rows]).astype(np.float32),
        "x_shape": np.array([num, num_features]),
        "edges": edges,
        "label": label,
        "train": mask(slice(num_train)),
        "val": mask(slice(num_train, num_train + VALIDATION)),
        "test": mask(test_nodes),
    }
