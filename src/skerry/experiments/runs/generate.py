"""Text from the language model of a run."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch

from skerry.model.inputs import tensors_of
from skerry.predictor import Predictor
from skerry.randomness import generator
from skerry.whole_number import check_whole_number


@torch.no_grad()
def generate(predictor: Predictor, prompt: str, *, tokens: int = 200, temperature: float = 0.8, seed: int = 0) -> str:
    """Return ``prompt`` and what the model adds to it, token by token.

    A token is drawn from softmax(logits / temperature), given the last tokens, at most as many as in a training sample.

    Args:
        predictor: of a run that learned to predict next tokens (``skerry.load``).
        prompt: how the text begins.
        tokens: how many to add.
        temperature: 0: always the most likely one.
        seed: of the draws.

    Raises:
        ValueError: the run is not of a language model, the prompt is empty or has unknown characters, ``tokens`` is not
            a whole number from 1, or ``temperature`` is negative.
    """
    check_whole_number("tokens", tokens, 1)
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: expected 0 or more")
    encode, decode = _tokenizer(predictor)
    text = encode(prompt)
    if not text:
        raise ValueError("prompt: empty, expected some text to go on with")
    rng, (length,), model = generator("generate", seed), predictor.signature.shape, predictor.model.eval()
    device = next(model.parameters()).device
    for _ in range(tokens):
        output = next(tensors_of(model(torch.tensor([text[-length:]], device=device))))
        logits = output[0, -1].float().cpu()
        if temperature:
            text.append(int(torch.multinomial((logits / temperature).softmax(0), 1, generator=rng)))
        else:
            text.append(int(logits.argmax()))
    return decode(text)


def _tokenizer(predictor: Predictor) -> tuple[Callable[[str], list[int]], Callable[[Sequence[int]], str]]:
    """Return the functions that turn a text into tokens and back."""
    signature = predictor.signature
    if signature.tokenizer:
        try:
            tokenizer: Any = import_module("tokenizers").Tokenizer.from_str(signature.tokenizer)
        except ModuleNotFoundError as error:
            raise ValueError(f"{predictor.name}: needs tokenizers; run: pip install 'skerry[hf]'") from error
        return (lambda text: tokenizer.encode(text).ids), tokenizer.decode
    known = signature.classes
    if not isinstance(known, tuple) or len(signature.shape) != 1 or {*map(len, known)} != {1}:
        raise ValueError(f"{predictor.name}: not a language model of characters, and it has no tokenizer")
    number = {character: k for k, character in enumerate(known)}

    def encode(text: str) -> list[int]:
        for character in text:
            if character not in number:
                raise ValueError(
                    f"prompt: {character!r} is not one of the {len(known)} characters of {predictor.name}; leave it out"
                )
        return [number[character] for character in text]

    return encode, lambda text: "".join(known[k] for k in text)
