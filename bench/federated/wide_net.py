"""The recipe of the benches of sites: a wide net without batch norm, on made-up data.

Its weights are most of what is sent and kept, and a local step takes milliseconds.
"""

from collections.abc import Mapping

import torch
from torch import nn

import skerry
from skerry.experiments.recipes import Config, Recipe, Task

INPUTS, CLASSES, TRAIN, TEST = 64, 10, 6400, 1000


def wide() -> Recipe:
    """Return the recipe; ``model.hidden``: units of each of the two hidden layers."""
    config = Config(
        rounds=20,
        local_steps=5,
        batch_size=32,
        eval_every=0,
        checkpoint_every_s=1e6,
        schedule="constant",
        optimizer={"name": "SGD", "lr": 0.05},
        model={"hidden": 2048},
    )
    return Recipe(summary="64-2048-2048-10 on points near ten centres", config=config, task=task, model=model)


def task(config: Config) -> Task:
    """Return points near ten centres, of which the nearest one is the label."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, INPUTS, generator=generator)
    y = torch.randint(CLASSES, (TRAIN + TEST,), generator=generator)
    x = centres[y] + 3.0 * torch.randn(TRAIN + TEST, INPUTS, generator=generator)
    return Task(train=(x[:TRAIN], y[:TRAIN]), test=(x[TRAIN:], y[TRAIN:]), classes=CLASSES)


def net(hidden: int) -> nn.Sequential:
    """Return a net of that width."""
    return nn.Sequential(
        nn.Linear(INPUTS, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)
    )


def model(config: Config, sizes: Mapping[str, int]) -> tuple[nn.Module, skerry.Plan]:
    """Return the net and its plan."""
    made = net(config.model["hidden"])
    return made, skerry.discover(made, torch.randn(4, INPUTS))
