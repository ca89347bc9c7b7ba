"""A wide MLP with batch norm on small images: Fashion-MNIST (the headline), MNIST, and digits for instant trials."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from skerry.experiments.config import Config
from skerry.experiments.datasets.sources import load
from skerry.experiments.models.mlp import MLP
from skerry.experiments.recipes.compared import compared
from skerry.experiments.recipes.recipe import Job, Recipe, first_samples, job
from skerry.plan.rules import In, Out, Rules
from skerry.plan.table import Plan


def fashion_mlp() -> Recipe:
    """784-1024-1024-10 on Fashion-MNIST, 4 workers. Methods at equal operations a worker (about 1.13 TFLOP).

    ``data.samples``, here and in the recipes below: only so many training samples, 0: all.
    """
    config = Config(recipe="fashion-mlp", model={"hidden": 1024, "layers": 2}, data={"samples": 0})
    return Recipe(
        summary="MLP 784-1024-1024-10 with batch norm on Fashion-MNIST",
        config=config,
        methods=compared(
            subnets={"rounds": 145, "local_steps": 50, "eval_every": 15},
            replicas={"rounds": 8, "local_steps": 115, "eval_every": 1},
            nested={"rounds": 47, "local_steps": 50, "eval_every": 5},
            own={
                # Rates of the first four: the best of several at seed 0, docs/log.md. Of the others not tuned.
                "relay": {"rounds": 10, "local_steps": 725, "eval_every": 1},
                "ist": {"optimizer.lr": 0.2},
                "narrow": {"optimizer.lr": 0.05},
                "local_sgd": {"optimizer.lr": 0.02},
                "single": {"optimizer.lr": 0.02},
                "ddp": {"optimizer.lr": 0.05},
                "diloco": {"optimizer.name": "AdamW", "optimizer.lr": 0.001},
                "fedrolex": {"partition.step": 64},
            },
        ),
        build=partial(_build, dataset="fashion-mnist"),
    )


def mnist_mlp() -> Recipe:
    """The same network on MNIST."""
    recipe = fashion_mlp()
    return Recipe(
        summary="the same MLP on MNIST",
        config=recipe.config.change({"recipe": "mnist-mlp"}),
        methods=recipe.methods,
        build=partial(_build, dataset="mnist"),
    )


def skewed_mlp() -> Recipe:
    """``fashion_mlp`` where each class is spread unevenly over the workers, in the role of private data.

    All methods are adjusted by the workers' label priors (``priors.py``).
    """
    recipe = fashion_mlp()
    return Recipe(
        summary="the MLP of fashion-mlp, each worker with its own mix of classes (Dirichlet .3)",
        config=recipe.config.change({"recipe": "skewed-mlp", "split": "dirichlet:0.3", "prior_adjusted": True}),
        methods=recipe.methods,
        build=recipe.build,
    )


def digits_mlp() -> Recipe:
    """64-128-128-10 on the handwritten digits that scikit-learn ships: a run takes seconds and no download."""
    settings: dict[str, Any] = {"rounds": 20, "local_steps": 20, "eval_every": 5}
    return Recipe(
        summary="MLP 64-128-128-10 on scikit-learn's digits, for trials that take seconds",
        config=Config(recipe="digits-mlp", model={"hidden": 128, "layers": 2}, data={"samples": 0}, batch_size=32),
        methods=compared(
            subnets=settings,
            replicas={"rounds": 4, "local_steps": 12, "eval_every": 1},
            nested=settings | {"rounds": 7},
            own={
                "diloco": {"optimizer.name": "AdamW", "optimizer.lr": 0.005},
                "fedrolex": {"partition.step": 32},
            },
        ),
        build=partial(_build, dataset="digits"),
    )


def mlp_rules(num_hidden: int) -> Rules:
    """The rules of ``MLP``: hidden layer k makes axis ``hk``; the input and the output are never dealt out."""
    rules: dict[str, Any] = {"out": In(f"h{num_hidden - 1}")}
    for k in range(num_hidden):
        rules[f"norms.{k}"] = Out(f"h{k}")
        rules[f"layers.{k}"] = (In(f"h{k - 1}"), Out(f"h{k}")) if k else Out("h0")
    return rules


def check_widths(config: Config) -> tuple[int, int]:
    """Return the number of hidden units of a layer, and of hidden layers; raise ValueError unless both are numbers."""
    hidden, layers = config.model["hidden"], config.model["layers"]
    for name, value in (("model.hidden", hidden), ("model.layers", layers)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number from 1")
    return hidden, layers


def _build(config: Config, dataset: str) -> Job:
    hidden, layers = check_widths(config)
    images = load(dataset)

    def normalize(x: Tensor) -> Tensor:
        return (x.flatten(1).float() / 255 - images.mean) / images.std

    train = first_samples(config, torch.from_numpy(images.x_train), torch.from_numpy(images.y_train).long())
    test = torch.from_numpy(images.x_test), torch.from_numpy(images.y_test).long()
    with torch.device("meta"):
        model = MLP([train[0][0].numel(), *[hidden] * layers, images.num_classes])
    plan = Plan.from_rules(model, mlp_rules(layers))
    return job(config, model, plan, train, test, transform=normalize, num_classes=images.num_classes)
