"""Deal samples out to workers: evenly mixed, sorted by class, or skewed by a Dirichlet draw.

Not to be confused with dealing *units* out (``skerry.partition``): this is done once, before training, and
says which worker owns which samples.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skerry.randomness import seed_of

CHOICES = "'iid', 'by_label' or 'dirichlet:ALPHA' with 0 < ALPHA <= 1e6, for example 'dirichlet:0.3'"
MAX_ALPHA = 1e6  # beyond it shares are equal anyway, and numpy's draw overflows long before the largest float

Ints = NDArray[np.int64]


def split(labels: NDArray[np.integer] | Tensor, num_workers: int, how: str, seed: int) -> list[Tensor]:
    """Return, for each worker, the sorted int64 indices of its samples: disjoint, non-empty, covering all.

    A pure function of its arguments. ``how`` is one of

    - ``iid``: a random deal; sizes differ by at most one.
    - ``by_label``: samples in order of class, cut into contiguous shares whose sizes differ by at most one,
      so that a worker sees few classes. Nothing is drawn: ``seed`` has no effect.
    - ``dirichlet:ALPHA``: of each class c, worker w gets the share p_cw, with (p_c1 .. p_cn) ~
      Dirichlet(ALPHA). Small ALPHA: few workers hold a class; large ALPHA: as iid. Sizes differ. A worker
      that drew nothing is given one sample of the worker that then has most.

    Args:
        labels: class of each sample, (num_samples,), any integer type; for ``iid`` anything that has a length.

    Raises:
        ValueError: unknown ``how``, bad ALPHA, labels not one dim of integers, or fewer samples than workers.

    Example:
        >>> [part.tolist() for part in split(np.array([1, 0, 1, 0]), 2, "by_label", seed=0)]
        [[1, 3], [0, 2]]

    References: the Dirichlet split is that of Hsu, Qi, Brown: Measuring the effects of non-identical data
    distribution for federated visual classification, 2019, arXiv:1909.06335. Differs from the paper: there
    each worker draws its mix of classes and all have equal sizes; here each class draws its mix of workers
    (as Li et al., arXiv:2102.02079, do), so every sample is dealt out exactly once.
    """
    # An iid deal does not look at the labels, so they may be anything (a regression's targets).
    classes = np.arange(len(labels)) if how == "iid" else _as_array(labels)
    if num_workers < 1:
        raise ValueError(f"num_workers: got {num_workers}, expected at least 1")
    if num_workers > len(classes):
        raise ValueError(f"num_workers: got {num_workers} for {len(classes)} samples, expected at most one a sample")
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
    """Give each empty part the last sample of the part that is largest then; the lowest worker at a tie."""
    for worker, part in enumerate(parts):
        if len(part) == 0:
            giver = int(np.argmax([len(other) for other in parts]))
            parts[giver], parts[worker] = parts[giver][:-1], parts[giver][-1:]
    return parts
