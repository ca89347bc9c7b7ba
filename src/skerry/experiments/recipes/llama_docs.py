"""A small Llama of transformers that learns byte pairs of Python's documentation, or of any other text."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from skerry.discovery.named.blocks import Blocks
from skerry.experiments.config import Config
from skerry.experiments.datasets.texts import python_docs
from skerry.experiments.recipes.next_token import language_recipe, model_sizes, next_token_task
from skerry.experiments.recipes.recipe import Recipe, Task, limited, whole_number

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DOCUMENT = 20_000
"""Characters that validate or train together: every tenth such part of the text validates."""
BYTES = 256
MOST = 10**12  # characters


def llama_docs() -> Recipe:
    """A Llama of two layers with a vocabulary of 512, about 1.2 TFLOP per worker with every method.

    It needs the extra ``hf``. ``data.file``: a text in UTF-8; empty: the documentation of Python 3.11
    (``skerry data fetch python-docs``). ``data.characters``: about how many of it to use, from all over it; 0: all.
    ``data.tokenizer``: a ``tokenizer.json`` of the library tokenizers; empty: one is trained on the text, with
    ``data.vocabulary`` tokens.
    """
    return language_recipe(
        "llama-docs",
        "Llama (transformers) of 2 layers, 4 heads and 256 hidden units on byte pairs of Python's documentation",
        model=_model,
        layers=Blocks("model.layers.*", branch=("self_attn.o_proj", "mlp.down_proj")),
        task=_task,
        data={"file": "", "characters": 3_000_000, "tokenizer": "", "vocabulary": 512},
        wide_steps=600,
        own={},
    )


def _task(config: Config) -> Task:
    text = python_docs(str(config.data["file"]))
    every = max(1, len(text) // limited(config, "characters", MOST))
    part = max(1, min(DOCUMENT, len(text) // (10 * every)))
    parts = [text[start : start + part] for start in range(0, len(text), every * part)]
    val, train = parts[9::10], [text for k, text in enumerate(parts) if k % 10 != 9]
    tokenizer, size = _tokenizer(config, train), whole_number(config, "data.vocabulary")
    num = tokenizer.get_vocab_size()
    if num > size:
        raise ValueError(
            f"data.tokenizer={config.data['tokenizer']}: {num} tokens, more than the rows of the embedding, "
            f"data.vocabulary={size}; give at least {num}"
        )
    names = [tokenizer.id_to_token(k) or f"unused {k}" for k in range(size)]
    trained, validated = (
        torch.tensor([token for each in tokenizer.encode_batch(texts) for token in each.ids]) for texts in (train, val)
    )
    return next_token_task(config, trained, validated, names, document=DOCUMENT // 3, tokenizer=tokenizer.to_str())


def _tokenizer(config: Config, texts: list[str]) -> "Tokenizer":
    """Return the tokenizer that the config names, or one that is trained on ``texts``.

    Raises:
        ValueError: the library is missing, the file is not a tokenizer, or the vocabulary is too small.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ValueError("recipe 'llama-docs' needs transformers; run: pip install 'skerry[hf]'") from error
    if path := str(config.data["tokenizer"]):
        try:
            return Tokenizer.from_str(Path(path).expanduser().read_text())
        except Exception as error:  # the library raises no other
            raise ValueError(f"data.tokenizer={path}: no tokenizer.json of the library tokenizers ({error})") from error
    size = whole_number(config, "data.vocabulary")
    if size < BYTES:
        raise ValueError(f"data.vocabulary={size}: expected at least {BYTES}, a token for each byte")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _model(config: Config, sizes: Mapping[str, int]) -> nn.Module:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ValueError("recipe 'llama-docs' needs transformers; run: pip install 'skerry[hf]'") from error
    own = model_sizes(config)
    net: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes["vocabulary"], max_position_embeddings=sizes["block"], hidden_size=own["width"],
            intermediate_size=own["hidden"], num_hidden_layers=own["layers"], num_attention_heads=own["heads"],
            num_key_value_heads=own["heads"], head_dim=own["head_size"], use_cache=False,
        )
    )  # fmt: skip
    return net
