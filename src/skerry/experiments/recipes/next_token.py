"""What recipes of language models share: a text as blocks of tokens, the loss of the next token, perplexity."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.experiments.recipes.recipe import Task
from skerry.training.evaluation.metrics import Perplexity

OPTIMIZER: Mapping[str, Any] = {"name": "AdamW", "lr": 0.008, "betas": [0.9, 0.95], "weight_decay": 0.1}


def logits_of(output: Any) -> Tensor:
    """Return the logits, (B, T, vocabulary), of what a model returned: a tensor, or an output of transformers."""
    logits: Tensor = output if isinstance(output, Tensor) else output["logits"]
    return logits


def next_token_loss(output: Any, targets: Tensor) -> Tensor:
    """Return the mean cross entropy per token; targets: (B, T) int64."""
    return F.cross_entropy(logits_of(output).flatten(0, 1), targets.flatten())


def blocks(tokens: Tensor, size: int, what: str) -> tuple[Tensor, Tensor]:
    """Return blocks of a text that do not overlap, and for each token the next one: (num_blocks, size) both.

    Raises:
        ValueError: the text is too short for one.
    """
    num = (len(tokens) - 1) // size
    if num < 1:
        raise ValueError(
            f"{what}: {len(tokens)} tokens, expected at least {size + 1}, one more than data.block; "
            "give a longer text or a smaller block"
        )
    return tokens[: num * size].view(num, size), tokens[1 : num * size + 1].view(num, size)


def next_token_task(train: Tensor, val: Tensor, vocabulary: Sequence[str], block: int) -> Task:
    """Return the task of predicting each next token.

    Args:
        train, val: the text to train on and the one to validate with, as numbers of tokens, (num_tokens,) int64.
        vocabulary: the tokens.
        block: tokens per sample.
    """
    return Task(
        train=blocks(train, block, "the text to train on"),
        test=blocks(val, block, "the text to validate with"),
        classes=tuple(vocabulary),
        sizes={"vocabulary": len(vocabulary), "block": block},
        loss_fn=next_token_loss,
        metrics={"perplexity": Perplexity(next_token_loss)},
    )
