"""A bag of words through hidden layers to very many labels: extreme classification."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class BagMLP(nn.Module):
    """Words -> sum of their vectors -> hidden layers with batch norm -> a score for each label.

    Args:
        num_words: words are 1 .. num_words; 0 is none, to fill rows up.
        hidden: sizes of the hidden layers; the first is that of the word vectors.
        num_labels: of the output.
    """

    def __init__(self, num_words: int, hidden: Sequence[int], num_labels: int) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words + 1, hidden[0])
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(hidden))
        self.norms = nn.ModuleList(nn.BatchNorm1d(h) for h in hidden)
        self.out = nn.Linear(hidden[-1], num_labels)

    def forward(self, words: Tensor) -> Tensor:
        """Map (B, L) int64 to (B, num_labels)."""
        # Sums over the words that are there, read from the table row by row: never a dense (B, num_words).
        there = (words > 0).to(self.words.weight.dtype)
        x = F.embedding_bag(words, self.words.weight, mode="sum", per_sample_weights=there)
        x = F.relu(self.norms[0](x))
        for layer, norm in zip(self.layers, self.norms[1:], strict=True):
            x = F.relu(norm(layer(x)))
        logits: Tensor = self.out(x)
        return logits
