"""Labels that are no classes of the model's outputs, named before a device fails on them, which ends the process."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.training.worker import LossFn


def in_range(loss_fn: LossFn, labels: Callable[[], Any]) -> LossFn:
    """Return ``loss_fn`` with a check of ``labels()``, those of the batch on the CPU, where it is known what they are.

    Raises:
        IndexError: a label of a cross entropy is no column of the logits; torch raises it on the CPU, too.
    """
    if loss_fn not in (F.cross_entropy, F.nll_loss) and not isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss):
        return loss_fn
    ignored = getattr(loss_fn, "ignore_index", -100)

    def checked(logits: Any, y: Any) -> Tensor:
        own = labels()
        if isinstance(own, Tensor) and own.dtype == torch.int64 and own.device.type == "cpu" and logits.dim() > 1:
            wrong = own[(own != ignored) & ((own < 0) | (own >= logits.shape[1]))]
            if len(wrong):
                raise IndexError(f"Target {int(wrong[0])} is out of bounds.")
        return loss_fn(logits, y)

    return checked
