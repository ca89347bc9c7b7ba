"""Evaluation of a full model on held-out data."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skerry.inputs import tensors_of
from skerry.local import LossFn


@dataclass(frozen=True)
class Score:
    """Mean loss and fraction of right answers over ``count`` samples; NaN where labels are no classes."""

    loss: float
    accuracy: float
    count: int

    def __str__(self) -> str:
        accuracy = "" if math.isnan(self.accuracy) else f", accuracy {self.accuracy:.4f}"
        return f"loss {self.loss:.4f}{accuracy} ({self.count} samples)"


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss_fn: LossFn,
    test: tuple[Tensor, Tensor],
    *,
    batch_size: int = 1024,
    num_batches: int | None = None,
    example: Tensor | None = None,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Score:
    """Score ``model`` on ``test`` = (inputs, labels) in evaluation mode.

    Accuracy is that of a classifier: the largest output against an integer label, (B, classes) against (B,).

    ``loss_fn`` must return the mean over its batch. ``total`` adds a tensor up over processes that each score a part.
    Where these must run the model equally often (``runtimes/streamed.py``), each makes ``num_batches`` runs, with
    ``example`` (an input) where its part has no more, which does not count.
    """
    if not len(test[1]) and num_batches is None:
        raise ValueError("the test set is empty; pass test=None to train without one")
    classes = not test[1].is_floating_point() and test[1].dim() == 1
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in range(-(-len(test[1]) // batch_size) if num_batches is None else num_batches):
        x, y = (t[batch * batch_size : (batch + 1) * batch_size] for t in test)
        output = model(x if len(y) else example)
        if not len(y):
            continue
        right = (next(tensors_of(output)).argmax(-1) == y).sum().item() if classes else math.nan
        sums += torch.tensor([loss_fn(output, y).item() * len(y), right, len(y)], dtype=torch.float64)
    model.train(was_training)
    loss, right, count = total(sums).tolist()
    return Score(loss / count, right / count, int(count))
