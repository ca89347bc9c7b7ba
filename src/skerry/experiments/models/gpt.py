"""A small GPT: a transformer that predicts each next token from those before it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; a token attends to itself and those before it."""

    def __init__(self, width: int, heads: int, head_size: int, hidden: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.query, self.key, self.value = (nn.Linear(width, heads * head_size, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * head_size, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to the same shape."""
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        branch: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + branch


class GPT(nn.Module):
    """Tokens (B, T) to the logits of each next token, (B, T, vocabulary), with T at most ``block``.

    Args:
        vocabulary: number of different tokens.
        block: most tokens at a time.
        layers: number of blocks.
        width: channels of the residual stream.
        heads, head_size: of the attention of each block.
        hidden: units of the MLP of each block.

    References: Radford et al.: Language Models are Unsupervised Multitask Learners, 2019 (GPT-2).
    """

    def __init__(
        self, vocabulary: int, block: int, *, layers: int, width: int, heads: int, head_size: int, hidden: int
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(block, width)
        self.blocks = nn.ModuleList(Block(width, heads, head_size, hidden) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T) int64 to (B, T, vocabulary)."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits
