"""A small GPT that learns the characters of Shakespeare, or of any other text."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from skerry.choose import choose
from skerry.discovery.discover import discover
from skerry.discovery.named.blocks import Blocks
from skerry.experiments.config import Config
from skerry.experiments.datasets.shakespeare import shakespeare
from skerry.experiments.models.gpt import GPT
from skerry.experiments.recipes.next_token import OPTIMIZER, next_token_task
from skerry.experiments.recipes.recipe import Recipe, Task, limited, settings_per_method, whole_number
from skerry.plan.table import Plan

MODEL: Mapping[str, Any] = {
    "layers": 2, "width": 64, "heads": 4, "head_size": 16, "hidden": 256, "groups": 1, "deal": "units",
}  # fmt: skip
STREAM_TOO: Mapping[str, Any] = {"model.width": 256, "model.groups": 4}
LAYERS: Mapping[str, Any] = {"model.layers": 8, "model.heads": 1, "model.hidden": 64, "model.deal": "layers"}


def gpt_shakespeare() -> Recipe:
    """A GPT of two blocks, 4 workers, about .5 TFLOP per worker with every method.

    Heads and hidden units of the MLPs are dealt out; embeddings and the residual stream of 64 channels are on every
    worker. ``relay`` and ``ensemble`` deal the stream out, too: theirs has 256 channels, normed in 4 groups, so that
    each of their four nets is as large as that of ``narrow``. ``resist`` deals out whole blocks of a deeper GPT (
    ``model.deal`` is "layers"), of which a worker has two.

    ``data.block``: characters per sample. ``data.characters``: how many to train on; 0: all.
    """
    subnets = {"rounds": 75, "local_steps": 20, "eval_every": 15}
    return Recipe(
        summary="GPT of 2 blocks, 4 heads and 256 hidden units on characters of Shakespeare",
        config=Config(
            recipe="gpt-shakespeare", model=MODEL, data={"block": 64, "characters": 0},
            batch_size=32, optimizer=OPTIMIZER, clip_grad_norm=1.0, eval_batch_size=256,
        ),
        methods=settings_per_method(
            subnets=subnets,
            replicas={"rounds": 21, "local_steps": 20, "eval_every": 3},
            nested={"rounds": 41, "local_steps": 20, "eval_every": 10},
            own={
                "relay": {"rounds": 4, "local_steps": 375, "eval_every": 1, "optimizer_state": "travel"} | STREAM_TOO,
                "ensemble": {"rounds": 4, "local_steps": 375, "eval_every": 1} | STREAM_TOO,
                "ist": {"optimizer_state": "travel"},
                "narrow": {"optimizer_state": "stay"},
                "local_sgd": {"optimizer_state": "stay"},
                "fedrolex": {"partition.step": 16},
            },
        ) | {"resist": {**subnets, **LAYERS}},
        task=_task,
        model=_model,
    )  # fmt: skip


def _task(config: Config) -> Task:
    text = shakespeare()
    train = text.train[: limited(config, "characters", len(text.train))]
    return next_token_task(train, text.val, text.vocabulary, whole_number(config, "data.block"))


def _model(config: Config, sizes: Mapping[str, int]) -> tuple[nn.Module, Plan]:
    layers, width, heads, head_size, hidden, groups = (
        whole_number(config, f"model.{name}") for name in ("layers", "width", "heads", "head_size", "hidden", "groups")
    )
    with torch.device("meta"):
        model = GPT(
            sizes["vocabulary"], sizes["block"], layers=layers, width=width, heads=heads, head_size=head_size,
            hidden=hidden,
        )  # fmt: skip
    example = torch.zeros(2, sizes["block"], dtype=torch.int64, device="meta")
    if choose(str(config.model["deal"]), ("units", "layers"), "model.deal") == "layers":
        return model, Blocks("blocks.*").plan(model, example)
    return model, discover(model, example, grouped_norms=groups if groups > 1 else False)
