"""Narrow nets side by side: subnets that share nothing, as one module that returns the mean of their outputs."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.model.inputs import map_tensors, tensors_of
from skerry.model.tensors import shapes_of
from skerry.plan.dims import Axis
from skerry.plan.table import Plan
from skerry.subnet.extract import Skipped, extract


class SideBySide(nn.Module):
    """n narrow nets in one module, which returns the mean of their outputs: f(x) = (1/n) sum_k f_k(x).

    Outputs that are not floats must be the same for all nets. A subnet has one of the nets and returns its output.

    Args:
        nets: narrow modules of the class of the model that they were extracted from.

    Attributes:
        nets: the same, as an ``nn.ModuleList``.

    Example:
        >>> import torch
        >>> pair = SideBySide([nn.Linear(2, 1), nn.Linear(2, 1)])
        >>> x = torch.ones(3, 2)
        >>> torch.equal(pair(x), (pair.nets[0](x) + pair.nets[1](x)) / 2)
        True
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call every net with the same arguments and return the mean.

        Raises:
            ValueError: the nets return different integers or truth values.
        """
        outputs = [net(*args, **kwargs) for net in self.nets if not isinstance(net, Skipped)]
        if len(outputs) == 1:
            return outputs[0]
        others = [tensors_of(output) for output in outputs]

        def mean(first: Tensor) -> Tensor:
            values = [next(tensors) for tensors in others]
            if first.is_floating_point():
                return sum(values[1:], values[0]) / len(values)
            if not all(torch.equal(first, value) for value in values):
                raise ValueError(
                    f"the model returns {first.dtype} of shape {tuple(first.shape)} that differ between the "
                    f"{len(values)} nets and have no mean; return floats (logits rather than predictions)"
                )
            return first

        return map_tensors(mean, outputs[0])


class Mixture(nn.Module):
    """Language models as one: each counts as much as the tokens so far are likely under it.

        p(x_t | x_<t) = sum_k w_k(x_<t) p_k(x_t | x_<t),   w_k(x_<t) proportional to p_k(x_<t).

    So the probability of a sequence is the mean of those under the nets. For nets that have learned different kinds of
    text (``skerry.data.kinds_of_text``) it is better than the mean of their outputs, for others worse
    (docs/language-models.md).

    Args:
        nets: each maps tokens (B, T) to the logits of the next token, (B, T, vocabulary), as a tensor or first in its
            output. For example ``result.model.nets`` of an ``ensemble``.

    References: Gururangan et al.: Scaling Expert Language Models with Unsupervised Domain Discovery (c-BTM), 2023,
    arXiv 2303.14177. Differs from the paper, which weighs nets by how near the text so far is to the centres of kinds.
    """

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, tokens: Tensor, before: Tensor | None = None) -> Tensor:
        """Return log-probabilities of the next token, (B, T, vocabulary).

        Args:
            tokens: (B, T), int64.
            before: (n, B), the log-likelihood of the text before ``tokens`` under each net (``log_likelihood``).
        """
        logs = torch.stack([_log_probabilities(net, tokens) for net in self.nets])
        so_far = F.pad(_of_next(logs, tokens), (1, 0)).cumsum(-1)  # (n, B, T)
        weights = (so_far if before is None else so_far + before[..., None]).log_softmax(0)
        return torch.logsumexp(logs + weights[..., None], dim=0)

    def log_likelihood(self, tokens: Tensor) -> Tensor:
        """Return the log-likelihood of the second and later tokens of each row of (B, T) under each net: (n, B)."""
        return torch.stack([_of_next(_log_probabilities(net, tokens), tokens).sum(-1) for net in self.nets])


def _log_probabilities(net: nn.Module, tokens: Tensor) -> Tensor:
    logits = next(tensors_of(net(tokens)))
    wide = torch.promote_types(logits.dtype, torch.float32)  # sums over a text need more digits than bf16 has
    return logits.to(wide).log_softmax(-1)


def _of_next(logs: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of each token after the first, (..., B, T - 1)."""
    following = tokens[:, 1:, None].expand(*logs.shape[:-2], -1, 1)
    return logs[..., :-1, :].gather(-1, following).squeeze(-1)


def side_by_side(model: nn.Module, plan: Plan, nets: Sequence[Tensor]) -> tuple[SideBySide, Plan]:
    """Return the subnets of ``model`` side by side, and a plan in which each of them is one unit.

    Args:
        model: the model that they are extracted from; it is not changed.
        plan: its plan.
        nets: for each net the global ids of its units, int64.
    """
    whole = SideBySide([extract(model, plan, units) for units in nets])
    blocks = {f"nets.{k}": k for k in range(len(nets))}
    return whole, Plan((Axis("nets", len(nets), "nets"),), {}, shapes_of(whole), blocks)


def nets_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the nets of the class of the user's model that ``model`` has, by the prefix of their names."""
    if not isinstance(model, SideBySide):
        return {"": model}
    return {f"nets.{k}.": net for k, net in enumerate(model.nets) if not isinstance(net, Skipped)}


def mean_of_nets(model: nn.Module, of: Callable[[nn.Module], Tensor]) -> Tensor:
    """Return the mean of ``of(net)`` over the nets of ``nets_of(model)``, one after the other."""
    first, *others = nets_of(model).values()
    result = of(first)
    for net in others:
        result += of(net)
    return result / (1 + len(others))
