"""Kinds of text: documents clustered by what tokens follow each other in them, so that each worker gets one kind."""

import torch
from torch import Tensor
from torch.nn import functional as F

from skerry.randomness import generator

_BUCKETS, _PASSES = 4096, 30


def kinds_of_text(samples: Tensor, num_kinds: int, *, samples_per_document: int = 1, seed: int = 0) -> Tensor:
    """Return the kind of each sample, (num_samples,) int64: 0 .. num_kinds - 1, about as many samples of each.

    Balanced k-means of documents: consecutive samples, of which the square roots of the counts of pairs of tokens, in
    4096 hashed buckets, are scaled to length 1. ``skerry.split(kinds, num_kinds, "by_label", seed=0)`` gives each
    worker one kind.

    Args:
        samples: tokens, (num_samples, size), int64, in the order of the text.
        num_kinds: k.
        samples_per_document: consecutive samples that are one document; a few thousand tokens are enough.
        seed: of the first centres.

    Raises:
        ValueError: there are fewer documents than kinds.

    Example:
        >>> text = torch.cat([torch.arange(40) % 2, torch.arange(40) % 2 + 7]).view(8, 10)
        >>> kinds = kinds_of_text(text, 2)
        >>> len(set(kinds[:4].tolist())), len(set(kinds[4:].tolist())), len(set(kinds.tolist()))
        (1, 1, 2)

    References: Gururangan et al.: Scaling Expert Language Models with Unsupervised Domain Discovery (c-BTM), 2023,
    arXiv 2303.14177, section 2.1. Differs from the paper: counts of pairs instead of tf-idf of words.
    """
    documents = torch.split(samples, samples_per_document)
    if not 0 < num_kinds <= len(documents):
        raise ValueError(
            f"num_kinds={num_kinds}: expected 1 to {len(documents)}, the number of documents ({len(samples)} samples, "
            f"{samples_per_document} in each)"
        )
    x = torch.stack([_features(document) for document in documents])
    x = x - x.mean(0)
    centres = x[torch.randperm(len(x), generator=generator(seed, "kinds"))[:num_kinds]]
    for _ in range(_PASSES):
        kind = _balanced(x @ centres.T)
        centres = torch.stack([F.normalize(x[kind == k].mean(0), dim=0) for k in range(num_kinds)])
    return kind.repeat_interleave(torch.tensor([len(document) for document in documents]))


def _features(document: Tensor) -> Tensor:
    """Return a vector of length 1."""
    pairs = (document[:, :-1] * 7919 + document[:, 1:]).flatten() % _BUCKETS
    return F.normalize(torch.bincount(pairs, minlength=_BUCKETS).float().sqrt(), dim=0)


def _balanced(likeness: Tensor) -> Tensor:
    """Return the kind of each row; the rows that are surest choose first, and a kind that is full takes no more."""
    num, num_kinds = likeness.shape
    best = likeness.topk(min(2, num_kinds), dim=1).values
    room = [len(part) for part in torch.arange(num).tensor_split(num_kinds)]
    kind = torch.zeros(num, dtype=torch.int64)
    for row in (best[:, -1] - best[:, 0]).argsort(stable=True).tolist():
        kind[row] = next(k for k in likeness[row].argsort(descending=True).tolist() if room[k])
        room[int(kind[row])] -= 1
    return kind
