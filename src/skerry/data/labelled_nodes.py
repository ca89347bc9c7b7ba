"""Which nodes of a graph have labels, and who learns from which of them."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from skerry.choose import choose
from skerry.data.splits import split
from skerry.model.class_labels import has_label

Labels = Literal["all", "split"]


def store_of(graph: Any, mask: str | None, kind: str = "") -> tuple[Any, str]:
    """Return the nodes of a graph that have labels, and their type (empty where a graph has only one).

    Raises:
        ValueError: there is no such type, or several have labels.
    """
    stores = {str(store._key or ""): store for store in graph.node_stores}
    wanted = [k for k, s in stores.items() if k == (kind or k) and "y" in s and (mask in s or not mask)]
    if len(stores) == 1 and not wanted and not kind:
        missing = [name for name in ("y", mask) if name and name not in graph]
        raise ValueError(
            f"graph: no {' and no '.join(map(repr, missing))}; give mask= the name of a mask, None: all nodes"
        )
    if len(wanted) != 1:
        raise ValueError(
            f"graph: nodes with 'y'{f' and {mask!r}' if mask else ''} are of {len(wanted)} types, expected 1 of "
            f"{', '.join(map(repr, stores))}; give mask= (None: all nodes), or kind= for a heterogeneous graph"
        )
    store = stores[wanted[0]]
    if store.y.dim() == 2 and store.y.shape[1] == 1 and not store.y.is_floating_point():
        shape = tuple(store.y.shape)
        raise ValueError(f"graph: y has shape {shape}, expected {shape[:1]}; use graph.y = graph.y.squeeze(1)")
    if mask:
        check_mask(store[mask], len(store.y), mask)
    return store, wanted[0]


def check_mask(mask: Tensor, num_nodes: int, name: str) -> None:
    """Raise ValueError unless ``mask`` tells of each node whether it is meant."""
    if mask.shape != (num_nodes,) or mask.dtype != torch.bool:
        one = f"; choose one split, such as graph.{name} = graph.{name}[:, 0]" if mask.dim() == 2 else ""
        raise ValueError(
            f"graph: {name} has {mask.dtype} of shape {tuple(mask.shape)}, expected bool of ({num_nodes},){one}"
        )


def labelled(store: Any, mask: str | None) -> Tensor:
    """Return the nodes in ``mask`` that have a label, int64; a class below 0 is none.

    Raises:
        ValueError: there are none.
    """
    nodes = _chosen(store, mask).cpu()
    if not len(nodes):
        raise ValueError(f"graph: no node has a label{f' in {mask!r}' if mask else ''}; labels below 0 are none")
    return nodes


def labels_of_batch(graph: Any) -> tuple[Tensor, Tensor, str]:
    """Return the labelled rows of a loader's batch, their labels and the type of the nodes.

    They are the seeds of a sampled neighbourhood (``batch_size``), or one row for each graph of a ``Batch`` with as
    many labels, or the nodes with a label, those in ``train_mask`` where there is one.

    Raises:
        ValueError: nodes of several types have labels, or none.
    """
    for store in graph.node_stores:
        if "batch_size" in store:
            return torch.arange(store.batch_size), store.y[: store.batch_size], str(store._key or "")
    y = getattr(graph, "y", None)
    if isinstance(y, Tensor) and len(y) == getattr(graph, "num_graphs", None):
        return torch.arange(len(y)), y, ""
    mask = "train_mask" if any("train_mask" in store for store in graph.node_stores) else None
    store, kind = store_of(graph, mask)
    rows = _chosen(store, mask)
    return rows, store.y[rows], kind


def _chosen(store: Any, mask: str | None) -> Tensor:
    """Return the nodes in ``mask`` that have a label."""
    known = has_label(store.y)
    return (known if mask is None else known & store[mask]).nonzero().flatten()


def deal_labels(nodes: Tensor, num_workers: int, labels: Labels, seed: int) -> Sequence[Tensor]:
    """Return for each worker the labelled nodes that it learns from.

    Raises:
        ValueError: there are fewer than workers, or ``labels`` is unknown.
    """
    choose(labels, get_args(Labels), "labels")
    if labels == "all":
        return [nodes] * num_workers
    return [nodes[part] for part in split(nodes, num_workers, "iid", seed)]
