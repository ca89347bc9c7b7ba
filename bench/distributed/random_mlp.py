"""Trains an MLP on random data in one process per worker, for benches that measure the cost and not the result."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

import skerry
from skerry.experiments.models.mlp import MLP
from skerry.experiments.recipes.image_mlp import mlp_rules
from skerry.training.train import Result


def mlp_and_plan(sizes: list[int]) -> tuple[MLP, skerry.Plan]:
    """Return the MLP on the meta device, and its plan."""
    with torch.device("meta"):
        model = MLP(sizes)
    return model, skerry.Plan.from_rules(model, mlp_rules(len(sizes) - 2))


def random_data(sizes: list[int], workers: int, samples: int, batch_size: int) -> skerry.Shards:
    """Return noise and random labels for the MLP: ``samples`` per worker."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(samples * workers, sizes[0], generator=rng)
    y = torch.randint(0, sizes[-1], (samples * workers,), generator=rng)
    return skerry.Shards(x, y, skerry.split(y, workers, "iid", 0), batch_size=batch_size, seed=0)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """Return SGD with momentum."""
    return torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)


def train(
    runtime: skerry.Processes,
    sizes: list[int],
    data: skerry.Shards,
    algorithm: skerry.algorithms.Algorithm,
    num_rounds: int,
    callbacks: Sequence[skerry.callbacks.Callback] = (),
) -> Result:
    """Train the MLP; no process holds all of it."""
    model, plan = mlp_and_plan(sizes)
    return skerry.train(
        model,
        F.cross_entropy,
        data,
        plan=plan,
        algorithm=algorithm,
        optimizer=sgd,
        num_rounds=num_rounds,
        runtime=runtime,
        start=lambda m: skerry.weights.FromInitializer(m, seed=0),
        callbacks=callbacks,
    )
