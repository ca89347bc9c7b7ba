"""The loss of language models as transformers has it: labels are the inputs again."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F


def causal_lm_loss(output: Any, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of each next token, in nats.

        - mean over (b, t) with label_{b,t+1} != -100 of log softmax(logits_{b,t})[label_{b,t+1}]

    Args:
        output: logits, (B, T, vocabulary), or an output of transformers that has them.
        labels: (B, T) int64, the tokens that the model was given; -100 for those not to learn, such as padding.

    Example:
        >>> import torch
        >>> round(float(causal_lm_loss(torch.zeros(2, 3, 8), torch.tensor([[1, 2, 3], [1, 2, -100]])).exp()), 4)
        8.0
    """
    logits = output if isinstance(output, Tensor) else output["logits"]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
