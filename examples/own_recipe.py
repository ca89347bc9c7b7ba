"""A recipe of your own, for the command line. Runs in seconds.

skerry train examples/own_recipe.py:spirals --out runs/spirals
skerry compare examples/own_recipe.py:spirals --out runs/compared
"""

import torch
from torch import nn

import skerry
from skerry.experiments.recipes import Config, Recipe, Scaling, Task


def spirals():
    config = Config(rounds=30, local_steps=20, batch_size=32, model={"hidden": 96})  # change with --set model.hidden=64
    return Recipe(summary="a net that tells three spirals apart", config=config, task=task, model=model)


def task(config):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (4400,), generator=generator)
    radius = torch.rand(4400, generator=generator)
    angle = 4 * radius + 2 * torch.pi / 3 * y + 0.1 * torch.randn(4400, generator=generator)
    x = 100 * torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    scaling = Scaling(mean=x[:4000].mean(0), std=x[:4000].std(0).clamp(min=1e-6))
    names = ("red", "green", "blue")
    return Task(train=(x[:4000], y[:4000]), test=(x[4000:], y[4000:]), scaling=scaling, classes=names)


def model(config, sizes):
    hidden = config.model["hidden"]
    net = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3))
    return net, skerry.discover(net, torch.randn(8, 2))


if __name__ == "__main__":  # the first of these commands, and what comes after it
    from skerry.experiments.cli import call

    call(["train", f"{__file__}:spirals", "--out", "runs/spirals"])
    predictor = skerry.load("runs/spirals")
    print(predictor.predict([[10, 5], [-40, 0], [30, -60]]))
    x, y = task(Config()).test
    print(f"accuracy {(predictor.predict(x) == predictor.classes[y]).mean():.4f}")
