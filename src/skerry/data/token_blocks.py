"""Texts as blocks of tokens, for language models."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from skerry.model.tokenizer import check_tokenizer
from skerry.whole_number import check_whole_number


def token_blocks(texts: str | Iterable[str], tokenizer: Any, block: int, *, model: Any = None) -> Tensor:
    """Return all texts one after the other as tokens, cut into blocks: (num_blocks, block) int64.

    They are inputs and labels in one, as transformers has them: ``skerry.training.causal_lm_loss`` shifts the labels.
    After each text comes the tokenizer's end token, if it has one. What is left of the last block is dropped.

    Args:
        texts: one, or several, such as the column ``dataset["text"]``.
        tokenizer: of transformers or tokenizers.
        block: tokens that the model sees at once.
        model: of transformers, to be checked to fit tokenizer and block; None: nothing is checked.

    Raises:
        ValueError: a text is no str, the texts are shorter than a block, or the tokenizer does not fit ``model``.

    Example:
        >>> class Letters:
        ...     def encode(self, text):
        ...         return [ord(letter) - ord("a") for letter in text]
        >>> token_blocks("abcdefg", Letters(), 3)
        tensor([[0, 1, 2],
                [3, 4, 5]])
    """
    check_whole_number("block", block, 2)
    if model is not None:
        check_tokenizer(model, tokenizer, block)
    several = [texts] if isinstance(texts, str | bytes) else texts
    tokens = torch.tensor([*_tokens(several, tokenizer)], dtype=torch.int64)
    num = len(tokens) // block
    if not num:
        raise ValueError(
            f"texts: {len(tokens)} tokens, expected at least block={block}; give more text (a text, not a file's "
            "name), or a smaller block"
        )
    return tokens[: num * block].view(num, block)


def _tokens(texts: Iterable[str], tokenizer: Any) -> Iterator[int]:
    end = getattr(tokenizer, "eos_token_id", None)
    for k, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{k}]: {type(text).__name__}, expected str; give dataset['text']")
        found = tokenizer.encode(text)
        yield from getattr(found, "ids", found)  # an Encoding of tokenizers
        if end is not None:
            yield end
