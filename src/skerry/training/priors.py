"""A remedy for label skew: each worker trains on logits to which its own log label prior is added."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skerry.data.shards import check_part
from skerry.training.worker import LossFn


def log_priors(labels: Tensor, parts: Sequence[Tensor], num_classes: int) -> Tensor:
    """Return the log of each worker's label prior, (num_workers, num_classes), for ``train(logit_adjustment=...)``.

    With n_wc samples of class c at worker w, and C classes,

        pi_w[c] = (n_wc + 1) / (sum_c n_wc + C)
        loss_w(x, y) = loss_fn(f(x) + log pi_w, y)        in the local steps of w; f alone is what is evaluated.

    At w, p_w(y | x) is proportional to pi_w[y] p(x | y). So the softmax of f(x) + log pi_w is right if f_c(x) is
    log p(x | c) up to a constant: the same f for all workers whose classes look alike, whatever their frequencies. One
    is added to each count so that pi_w of a class that w lacks is small but not zero: training at w hardly lowers the
    logit of that class.

    f predicts as if all classes were equally frequent. If they are not, and accuracy matters, add the log of their
    frequencies to its outputs.

    Args:
        labels: class of each sample, (num_samples,), any integer type, 0 .. num_classes - 1.
        parts: for each worker the indices of its samples, int64, as ``split`` returns them.
        num_classes: the number of logits.

    Returns:
        (num_workers, num_classes), float32, on the device of ``labels``.

    Raises:
        ValueError: labels are not classes or not below ``num_classes``; no parts; a part is empty, not one dim of
            int64, or has indices out of range.

    Example:
        >>> rows = log_priors(torch.tensor([0, 0, 1, 2]), [torch.tensor([0, 1]), torch.tensor([2, 3])], num_classes=3)
        >>> rows.exp()
        tensor([[0.6000, 0.2000, 0.2000],
                [0.2000, 0.4000, 0.4000]])

    References:
        Menon, Jayasumana, Rawat, Jain, Veit, Kumar: Long-tail learning via logit adjustment, ICLR 2021, arXiv
        2007.07314 (the logit adjusted softmax cross entropy, section 5).
        Zhang, Li, Li, Xu, Wu, Ding, Wu: Federated Learning with Label Distribution Skew via Logits Calibration (FedLC),
        ICML 2022, arXiv 2209.00189 (a margin per worker and class).

    Differs from the paper: Menon et al. add tau times the log prior of all data; here tau = 1, and each worker has its
    own prior, smoothed by one count. FedLC, also with one per worker, subtracts tau * n_wc^(-1/4) instead.
    """
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels: {labels.dtype} of shape {tuple(labels.shape)}, expected integers of shape (num_samples,), "
            "one class per sample; other targets have no such prior"
        )
    if len(parts) == 0:
        raise ValueError("parts: none given, expected one per worker")
    for worker, part in enumerate(parts):
        check_part(worker, part, len(labels))
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        remedy = "drop samples without a class" if low < 0 else f"give num_classes={high + 1} or more"
        raise ValueError(f"labels: {low} .. {high}, expected 0 .. {num_classes - 1}; {remedy}")
    own = (labels[part.to(labels.device)].long() for part in parts)
    counts = torch.stack([each.bincount(minlength=num_classes) for each in own]).double() + 1
    return (counts / counts.sum(1, keepdim=True)).log().float()


def adjusted(loss_fn: LossFn, row: Tensor) -> LossFn:
    """Return ``loss_fn`` of logits, (B, C), to which ``row``, (C,), is added."""

    def of_sum(logits: Any, y: Any) -> Tensor:
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] != len(row):
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"logit_adjustment: {len(row)} classes, but the model returns {got}, expected (batch, {len(row)}); "
                "make it for that number of classes (skerry.training.log_priors(..., num_classes=...)), or leave it out"
            )
        return loss_fn(logits + row, y)

    return of_sum
