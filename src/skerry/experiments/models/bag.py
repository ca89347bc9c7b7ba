"""Extreme classification: a bag of words, hidden layers, and very many labels."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class BagMLP(nn.Module):
    """Sum of word vectors -> hidden layers with batch norm -> one logit per label.

    Args:
        num_words: words are 1 .. num_words; 0 is padding.
        hidden: sizes of the hidden layers; the first is the size of the word vectors.
        num_labels: number of logits.
    """

    def __init__(self, num_words: int, hidden: Sequence[int], num_labels: int) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words + 1, hidden[0])
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(hidden))
        self.norms = nn.ModuleList(nn.BatchNorm1d(h) for h in hidden)
        self.out = nn.Linear(hidden[-1], num_labels)

    def forward(self, words: Tensor) -> Tensor:
        """Map (B, L) int64 to (B, num_labels)."""
        # embedding_bag sums rows of the table, without a dense (B, num_words).
        is_word = (words > 0).to(self.words.weight.dtype)
        x = F.embedding_bag(words, self.words.weight, mode="sum", per_sample_weights=is_word)
        x = F.relu(self.norms[0](x))
        for layer, norm in zip(self.layers, self.norms[1:], strict=True):
            x = F.relu(norm(layer(x)))
        logits: Tensor = self.out(x)
        return logits
