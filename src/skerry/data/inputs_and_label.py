"""Split a batch into the model's inputs and the label: the two halves of a pair, or columns by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from skerry.data.labelled_nodes import labels_of_batch
from skerry.model.graph_inputs import GraphInputs, is_graph
from skerry.model.in_words import CHOOSE_COLUMNS
from skerry.model.inputs import Inputs, tensors_of

Columns = str | Sequence[str] | None
"""One name: the column is the model's only argument. Several: they are keyword arguments. None: all but the label."""


LABELS = ("label", "labels")


def inputs_and_label(batch: Any, inputs: Columns, label: str | None, where: str) -> tuple[Inputs, Any]:
    """Return (x, y) of a collated batch.

    Args:
        batch: a pair (inputs, labels), a dict of columns as in Hugging Face ``datasets``, or a graph of PyTorch
            Geometric with labels ``y``.
        inputs: the columns to call the model with; not used for a pair.
        label: the column with the label; None: that of ``LABELS`` which is there. Not used for a pair.
        where: what the batch is of, for errors.

    Raises:
        ValueError: the batch is neither, has no such column, or a column did not become a tensor.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        x, y = batch
        return (tuple(x) if isinstance(x, list) else x), y
    if is_graph(batch):
        rows, y, kind = labels_of_batch(batch)
        if not len(rows):
            raise ValueError(
                f"{where}: a graph with no labelled node (train_mask), expected some in each batch; load larger parts, "
                "start from labelled nodes (NeighborLoader), or use skerry.graphs.clusters, which sees to it"
            )
        return GraphInputs(batch, rows, kind), y
    if not isinstance(batch, Mapping):
        got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(f"{where}: the batch is a {got}, expected a pair (inputs, labels) or a dict of columns")
    label = label or next((name for name in LABELS if name in batch), LABELS[0])
    names = [name for name in batch if name != label] if inputs is None else inputs
    wanted = [names] if isinstance(names, str) else list(names)
    for name in [*wanted, label]:
        if name not in batch:
            columns = ", ".join(map(str, batch))
            raise ValueError(f"{where}: column '{name}': not in the data, expected one of {columns}; {CHOOSE_COLUMNS}")
        if not isinstance(batch[name], Tensor | Mapping) or not any(True for _ in tensors_of(batch[name])):
            raise ValueError(
                f"{where}: column '{name}': became a {type(batch[name]).__name__}, expected a tensor; use "
                f"dataset.with_format('torch'), give a collate function, or {CHOOSE_COLUMNS}"
            )
    return (batch[names] if isinstance(names, str) else {name: batch[name] for name in wanted}), batch[label]
