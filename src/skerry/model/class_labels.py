"""Which labels are classes, and which samples have one: a class below 0 is none."""

import torch
from torch import Tensor


def are_classes(y: Tensor) -> bool:
    """Tell whether labels are classes: one whole number per sample."""
    return y.dim() == 1 and not y.is_floating_point()


def has_label(y: Tensor) -> Tensor:
    """Return which samples have a label, bool, (samples,)."""
    return y >= 0 if are_classes(y) else torch.ones(y.shape[:1], dtype=torch.bool, device=y.device)
