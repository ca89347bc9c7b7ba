"""Split samples among workers: evenly mixed, sorted by class, or with label skew from a Dirichlet draw.

This says which worker has which samples, once, before training. ``skerry.partitions`` deals out *units* instead.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skerry.randomness import seed_of
from skerry.whole_number import check_whole_number

CHOICES = "'iid', 'by_label' or 'dirichlet:ALPHA' with 0 < ALPHA <= 1e6, for example 'dirichlet:0.3'"
MAX_ALPHA = 1e6  # beyond it shares are equal anyway, and numpy's draw overflows long before the largest float

Ints = NDArray[np.int64]


def split(labels: NDArray[np.integer] | Tensor, num_workers: int, how: str, seed: int) -> list[Tensor]:
    """Return for each worker the sorted int64 indices of its samples: disjoint, not empty, together all samples.

    A pure function of its arguments.

    Args:
        labels: class of each sample, (num_samples,), any integer type. For ``iid`` anything that has a length.
        num_workers: at most the number of samples.
        how: one of

            - ``iid``: at random; sizes differ by at most one.
            - ``by_label``: samples sorted by class and cut into contiguous parts whose sizes differ by at most one, so
              each worker sees few classes. Nothing is random: ``seed`` has no effect.
            - ``dirichlet:ALPHA``: of each class c, worker w gets the share p_cw, with (p_c1 .. p_cn) ~
              Dirichlet(ALPHA). With small ALPHA few workers have a class; large ALPHA approaches ``iid``. Sizes differ.
              A worker that would get nothing gets one sample of the worker that has most.
        seed: determines all random draws.

    Raises:
        ValueError: ``how`` is unknown, ALPHA is out of range, labels are not one dim of integers, or there are fewer
            samples than workers.

    Example:
        >>> [part.tolist() for part in split(np.array([1, 0, 1, 0]), 2, "by_label", seed=0)]
        [[1, 3], [0, 2]]

    References: the Dirichlet split is from Hsu, Qi, Brown: Measuring the effects of non-identical data distribution for
    federated visual classification, 2019, arXiv 1909.06335. Differs from the paper: there each worker draws its mix of
    classes and all sizes are equal; here each class draws its mix of workers (as in Li et al., arXiv 2102.02079), so
    every sample is used exactly once.
    """
    # An iid split does not look at the labels, so they may be anything (a regression's targets).
    classes = np.arange(len(labels)) if how == "iid" else _as_array(labels)
    check_whole_number("num_workers", num_workers, 1)
    if num_workers > len(classes):
        raise ValueError(
            f"num_workers: got {num_workers} for {len(classes)} samples, expected at most one worker per sample"
        )
    rng = np.random.Generator(np.random.PCG64(seed_of(seed, "split")))
    name, colon, alpha = how.partition(":")
    if how == "iid":
        parts = np.array_split(rng.permutation(len(classes)), num_workers)
    elif how == "by_label":
        parts = np.array_split(np.argsort(classes, kind="stable"), num_workers)
    elif name == "dirichlet" and colon:
        parts = _dirichlet(classes, num_workers, _parse_alpha(alpha, how), rng)
    else:
        raise ValueError(f"split {how!r} is unknown, expected {CHOICES}")
    return [torch.from_numpy(np.sort(part).astype(np.int64)) for part in parts]


def _as_array(labels: NDArray[np.integer] | Tensor) -> Ints:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels: {array.dtype} of shape {array.shape}, expected integers of shape (num_samples,)")
    return array.astype(np.int64)


def _parse_alpha(text: str, how: str) -> float:
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha <= MAX_ALPHA:  # refuses nan too
        raise ValueError(f"split {how!r}: bad ALPHA {text!r}, expected {CHOICES}")
    return alpha


def _dirichlet(classes: Ints, num_workers: int, alpha: float, rng: np.random.Generator) -> list[Ints]:
    shares: list[list[Ints]] = [[] for _ in range(num_workers)]
    for label in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == label))
        proportions = rng.dirichlet(np.full(num_workers, alpha))
        cuts = np.floor(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        for share, piece in zip(shares, np.split(members, cuts), strict=True):
            share.append(piece)
    return _feed_empty([np.concatenate(share) for share in shares])


def _feed_empty(parts: list[Ints]) -> list[Ints]:
    """Give each empty part the last sample of the largest part; on a tie that of the lowest worker."""
    for worker, part in enumerate(parts):
        if len(part) == 0:
            giver = int(np.argmax([len(other) for other in parts]))
            parts[giver], parts[worker] = parts[giver][:-1], parts[giver][-1:]
    return parts
