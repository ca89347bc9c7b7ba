"""A layer norm or RMS norm that takes its statistics over groups of features instead of all of them.

This file needs torch alone: an exported model takes it along (``checkpoint/pretrained.py``).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupedNorm(nn.Module):
    """Norm each group of ``group_width`` neighbouring features by itself, then scale and shift each feature.

        y_i = (x_i - mean_g) / sqrt(var_g + eps) * (offset + weight_i) + bias_i     for a layer norm,
        y_i = x_i / sqrt(mean_g(x^2) + eps) * (offset + weight_i)                   for an RMS norm,

    with the statistics of the group g that feature i is in. With one group it is the usual norm. A subnet has some of
    the groups, so its norms compute what those of the full model do.

    Args:
        weight: (features,), or None.
        bias: (features,), or None.
        group_width: features in a group.
        eps: added to the variance.
        centred: whether the mean is subtracted: layer norm, not RMS norm.
        offset: added to the weight: 1 in Gemma, else 0.

    Example:
        >>> norm = GroupedNorm(None, None, group_width=2, eps=0.0)
        >>> norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]]))
        tensor([[-1.,  1., -1.,  1.]])
    """

    def __init__(
        self, weight: nn.Parameter | None, bias: nn.Parameter | None, group_width: int, eps: float,
        centred: bool = True, offset: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight, self.bias = weight, bias
        self.group_width, self.eps, self.centred, self.offset = group_width, eps, centred, offset

    def reset_parameters(self) -> None:
        """Make the affine map the identity."""
        with torch.no_grad():
            if self.weight is not None:
                self.weight.fill_(1.0 - self.offset)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed features, (..., features)."""
        groups, shape = x.reshape(*x.shape[:-1], -1, self.group_width), (self.group_width,)
        norm = F.layer_norm if self.centred else F.rms_norm
        y = norm(groups, shape, eps=self.eps).flatten(-2)
        if self.weight is not None:
            y = y * (self.weight + self.offset if self.offset else self.weight)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """Return what it is made of."""
        kind = "layer norm" if self.centred else "RMS norm"
        return f"{kind} over groups of {self.group_width} features, eps={self.eps}"
