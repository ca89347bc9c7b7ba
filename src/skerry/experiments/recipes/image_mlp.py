"""A wide MLP with batch norm on small images: Fashion-MNIST (the headline), MNIST, and digits for quick trials."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from skerry.experiments.config import Config, Privacy
from skerry.experiments.datasets.loading import load
from skerry.experiments.models.mlp import MLP
from skerry.experiments.recipes.recipe import (
    Recipe,
    Task,
    first_samples,
    hidden_sizes,
    settings_per_method,
    with_label_skew,
)
from skerry.plan.rules import In, Out, Rules
from skerry.plan.table import Plan
from skerry.predictor import Scaling


def fashion_mlp() -> Recipe:
    """784-1024-1024-10 on Fashion-MNIST, 4 workers, about 1.13 TFLOP per worker with every method.

    ``data.samples``, here and in the recipes below: the number of training samples; 0: all.
    """
    return Recipe(
        summary="MLP 784-1024-1024-10 with batch norm on Fashion-MNIST",
        config=Config(recipe="fashion-mlp", model={"hidden": 1024, "layers": 2}, data={"samples": 0}),
        methods=settings_per_method(
            subnets={"rounds": 145, "local_steps": 50, "eval_every": 15},
            replicas={"rounds": 8, "local_steps": 115, "eval_every": 1},
            nested={"rounds": 47, "local_steps": 50, "eval_every": 5},
            own={
                # Learning rates of the first four: the best of several at seed 0, docs/log.md. Others are not tuned.
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
        task=partial(_task, dataset="fashion-mnist"),
        model=mlp,
    )


def mnist_mlp() -> Recipe:
    """The same network on MNIST."""
    recipe = fashion_mlp()
    return replace(
        recipe,
        summary="the same MLP on MNIST",
        config=recipe.config.change({"recipe": "mnist-mlp"}),
        task=partial(_task, dataset="mnist"),
    )


def skewed_mlp() -> Recipe:
    """``fashion_mlp`` with label skew (Dirichlet .3), as with private data; logits are adjusted by label priors."""
    return with_label_skew(fashion_mlp(), "skewed-mlp", "the MLP of fashion-mlp")


def async_fashion() -> Recipe:
    """784-256-256-10 on Fashion-MNIST; 8 of 32 clients train at a time, the slowest 5 times as long as the fastest.

    All methods end at about the same simulated time: 120 turns of the fastest client with the whole model.
    """
    settings: dict[str, Any] = {"rounds": 261, "eval_every": 22}  # nets of 1/8
    whole: dict[str, Any] = {"rounds": 25, "eval_every": 2}
    config = Config(
        recipe="async-fashion",
        method="asyncdrop",
        workers=8,
        clients=32,
        slowest=5.0,
        local_steps=20,
        batch_size=32,
        split="dirichlet:0.3",
        prior_adjusted=True,
        model={"hidden": 256, "layers": 2},
        data={"samples": 0},
    )
    return Recipe(
        summary="MLP 784-256-256-10 on Fashion-MNIST, 8 of 32 clients of different speeds at a time, label skew",
        config=config,
        methods={
            "asyncdrop": {"rounds": 473, "eval_every": 43},
            "fedbuff": {"rounds": 33, "eval_every": 3},
            "local_sgd": whole,
            **dict.fromkeys(("ist", "relay", "narrow"), settings),
        },
        task=partial(_task, dataset="fashion-mnist"),
        model=mlp,
    )


def private_fashion() -> Recipe:
    """784-256-256-10 without batch norm on Fashion-MNIST, 4 workers, differentially private: 4 passes in large batches.

    All methods take as many steps: each step costs privacy, whatever it computes.
    """
    config = Config(
        recipe="private-fashion",
        rounds=12,
        local_steps=5,
        eval_every=0,
        batch_size=1024,
        optimizer={"name": "SGD", "lr": 4.0},
        private=Privacy(target_epsilon=4.0),
        model={"hidden": 256, "layers": 2},
        data={"samples": 0},
    )
    methods = ("ist", "relay", "narrow", "ensemble", "local_sgd", "single")
    return Recipe(
        summary="MLP 784-256-256-10 on Fashion-MNIST with differential privacy, epsilon 4 per worker",
        config=config,
        methods={method: {} for method in methods},
        task=_private_task,
        model=partial(mlp, norm=False),
    )


def digits_mlp() -> Recipe:
    """64-128-128-10 on the handwritten digits that come with scikit-learn: takes seconds and needs no download."""
    settings: dict[str, Any] = {"rounds": 20, "local_steps": 20, "eval_every": 5}
    return Recipe(
        summary="MLP 64-128-128-10 on scikit-learn's digits, for trials that take seconds",
        config=Config(recipe="digits-mlp", model={"hidden": 128, "layers": 2}, data={"samples": 0}, batch_size=32),
        methods=settings_per_method(
            subnets=settings,
            replicas={"rounds": 4, "local_steps": 12, "eval_every": 1},
            nested=settings | {"rounds": 7},
            own={
                "diloco": {"optimizer.name": "AdamW", "optimizer.lr": 0.005},
                "fedrolex": {"partition.step": 32},
            },
        ),
        task=partial(_task, dataset="digits"),
        model=mlp,
    )


def mlp_rules(num_hidden: int, *, norm: bool = True) -> Rules:
    """Return the rules of ``MLP``: hidden layer k makes axis ``hk``; inputs and outputs are never dealt out."""
    rules: dict[str, Any] = {"out": In(f"h{num_hidden - 1}")}
    for k in range(num_hidden):
        if norm:
            rules[f"norms.{k}"] = Out(f"h{k}")
        rules[f"layers.{k}"] = (In(f"h{k - 1}"), Out(f"h{k}")) if k else Out("h0")
    return rules


def mlp(config: Config, sizes: Mapping[str, int], *, norm: bool = True) -> tuple[nn.Module, Plan]:
    """Return an ``MLP`` on meta with the hidden layers of the config, with batch norm or without, and its plan."""
    hidden = hidden_sizes(config)
    with torch.device("meta"):
        model = MLP([sizes["inputs"], *hidden, sizes["classes"]], norm=norm)
    return model, Plan.from_rules(model, mlp_rules(len(hidden), norm=norm))


def _private_task(config: Config) -> Task:
    """Return Fashion-MNIST, scaled by constants: the mean of all images is not private."""
    return replace(_task(config, "fashion-mnist"), scaling=Scaling(0.5, 0.5, divisor=255))


def _task(config: Config, dataset: str) -> Task:
    images = load(dataset)
    x, y = first_samples(config, torch.from_numpy(images.x_train), torch.from_numpy(images.y_train).long())
    return Task(
        train=(x, y),
        test=(torch.from_numpy(images.x_test), torch.from_numpy(images.y_test).long()),
        scaling=Scaling(images.mean, images.std, divisor=255),
        classes=images.class_names or images.num_classes,
        sizes={"inputs": x[0].numel(), "classes": images.num_classes},
    )
