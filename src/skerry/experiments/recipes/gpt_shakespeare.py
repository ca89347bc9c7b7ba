"""A small GPT that learns the characters of Shakespeare, or of any other text."""

from collections.abc import Mapping

import torch
from torch import nn

from skerry.discovery.named.blocks import Blocks
from skerry.experiments.config import Config
from skerry.experiments.datasets.texts import shakespeare
from skerry.experiments.models.gpt import GPT
from skerry.experiments.recipes.next_token import language_recipe, model_sizes, next_token_task
from skerry.experiments.recipes.recipe import Recipe, Task, limited

BEST_RATES = {"narrow": 0.032, "relay": 0.032, "ensemble": 0.032, "ist": 0.024, "local_sgd": 0.016}
"""The best of four each, at the recipe's length (docs/language-models.md); the others have the common one."""


def gpt_shakespeare() -> Recipe:
    """A GPT of two blocks, about .6 TFLOP per worker with every method; see ``language_recipe``.

    ``data.file``: a text in UTF-8; empty: Shakespeare. ``data.block``: characters per sample. ``data.characters``: how
    many to train on; 0: all.
    """
    return language_recipe(
        "gpt-shakespeare",
        "GPT of 2 blocks, 4 heads and 256 hidden units on characters of Shakespeare",
        model=_model,
        layers=Blocks("blocks.*", branch=("out", "down")),
        task=_task,
        data={"file": "", "characters": 0},
        wide_steps=420,
        own={method: {"optimizer.lr": lr} for method, lr in BEST_RATES.items()},
    )


def _task(config: Config) -> Task:
    text = shakespeare(str(config.data["file"]))
    train = text.train[: limited(config, "characters", len(text.train))]
    return next_token_task(config, train, text.val, text.vocabulary, document=20_000)


def _model(config: Config, sizes: Mapping[str, int]) -> nn.Module:
    with torch.device("meta"):
        return GPT(sizes["vocabulary"], sizes["block"], **model_sizes(config))
