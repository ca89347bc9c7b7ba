"""How many terms a mean loss is the mean of, so that batches count by what they have and not by their samples."""

import torch
from torch import Tensor

from skerry.training.evaluation.causal import causal_lm_loss
from skerry.training.worker import LossFn


def loss_terms(loss_fn: LossFn, y: Tensor) -> Tensor:
    """Return the number of terms of ``loss_fn(output, y)``, up to a factor that is the same for all batches.

    Whole numbers count unless they are -100; ``causal_lm_loss`` does not learn the first of a row. Of other labels, and
    where a loss of your own leaves out something else, each sample counts as much as any.

    Example:
        >>> loss_terms(causal_lm_loss, torch.tensor([[1, 2, 3], [1, 2, -100]]))
        tensor(3)
    """
    if y.is_floating_point() or y.is_complex():
        return torch.tensor(len(y))
    return ((y[:, 1:] if loss_fn is causal_lm_loss else y).long() != -100).sum()
