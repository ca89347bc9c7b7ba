"""Extreme classification: a wide hidden layer between words and very many labels, in place of Amazon-670k."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skerry.experiments.config import Config
from skerry.experiments.datasets.depends import debian_depends, most_frequent
from skerry.experiments.models.bag import BagMLP
from skerry.experiments.recipes.recipe import (
    Recipe,
    Task,
    first_samples,
    hidden_sizes,
    limited,
    settings_per_method,
)
from skerry.plan.rules import In, Out, Rules
from skerry.plan.table import Plan
from skerry.training.evaluation.metrics import precision_at

PRECISIONS = (1, 3, 5)


def depends_xc() -> Recipe:
    """8,128 words -> h -> 17,860 labels. A worker holds 1/n of both weights, as each has one dim that is dealt out.

    ``data.labels``: keep only that many of the most frequent labels, and the samples that have one. ``data.samples``:
    train on only that many samples. 0: all. Fetched from today's list of packages, words and labels differ in number.

    Learning rates were tuned with 64 hidden units and half of the steps, and only for ``ist``, ``narrow`` and
    ``local_sgd`` (docs/results.md). Adam's moments travel with a subnet, or stay with a worker that keeps its units:
    resetting them each round costs points of P@1.

    References: Yuan et al., VLDB 2022, arXiv 1910.02120, section 5 (Amazon-670k: 135,909 -> 512 .. 2560 -> 670,091).
    """
    settings: dict[str, Any] = {"rounds": 10, "local_steps": 125, "eval_every": 2}
    adam = {"optimizer.name": "Adam", "optimizer.lr": 0.05}
    return Recipe(
        summary="about 8128 words -> 512 -> 17860 labels on Debian's packages (extreme classification)",
        config=Config(
            recipe="depends-xc",
            model={"hidden": 512, "layers": 1},
            data={"samples": 0, "labels": 0},
            eval_batch_size=512,
        ),
        methods=settings_per_method(
            subnets=settings | adam,
            replicas=settings | adam | {"rounds": 6, "local_steps": 50},
            nested=settings | adam | {"rounds": 13, "local_steps": 50, "eval_every": 4},
            own={
                "ist": {"optimizer_state": "travel", "optimizer.lr": 0.1},
                "relay": {"optimizer_state": "travel", "optimizer.lr": 0.1},
                "narrow": {"optimizer_state": "stay", "optimizer.lr": 0.1},
                "local_sgd": {"optimizer_state": "stay"},
                "diloco": {"optimizer.name": "AdamW", "optimizer.lr": 0.002},
                "fedrolex": {"partition.step": 32},
            },
        ),
        task=_task,
        model=_model,
        paper="Yuan et al. (arXiv 1910.02120), Amazon-670k, P@1/3/5: data parallel .3861/.3454/.3164 with 512 hidden "
        "units (it fails from 1024 on); IST .3962/.3604/.3313 with 512, .4089/.3685/.3392 with 1024, "
        ".4384/.3944/.3658 with 2560.",
    )


def bag_rules(num_hidden: int) -> Rules:
    """Return the rules of ``BagMLP``: hidden layer k makes axis ``hk``; words and labels are never dealt out."""
    rules: dict[str, Any] = {"words": Out("h0"), "out": In(f"h{num_hidden - 1}")}
    for k in range(num_hidden):
        rules[f"norms.{k}"] = Out(f"h{k}")
        if k:
            rules[f"layers.{k - 1}"] = (In(f"h{k - 1}"), Out(f"h{k}"))
    return rules


def several_labels(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross entropy of samples with several labels of equal weight.

    ``-(1/B) sum_b (1/|Y_b|) sum_{l in Y_b} log softmax(logits_b)_l``

    Args:
        logits: (B, num_labels).
        y: (B, most labels), int64, padded with -1.
    """
    is_label = (y >= 0).to(logits.dtype)
    picked = logits.gather(1, y.clamp(min=0))
    losses = (picked * is_label).sum(1) / is_label.sum(1) - logits.logsumexp(1)
    return -losses.mean()


def _task(config: Config) -> Task:
    data = debian_depends()
    data = most_frequent(data, limited(config, "labels", data.num_labels, least=max(PRECISIONS)))
    x, y = first_samples(config, data.x_train, data.y_train)
    return Task(
        train=(x, y),
        test=(data.x_test, data.y_test),
        classes=data.num_labels,
        sizes={"words": data.num_words, "labels": data.num_labels},
        loss_fn=several_labels,
        split_by=y[:, 0],
        metrics={f"P@{k}": precision_at(k) for k in PRECISIONS},
    )


def _model(config: Config, sizes: Mapping[str, int]) -> tuple[nn.Module, Plan]:
    hidden = hidden_sizes(config)
    with torch.device("meta"):
        model = BagMLP(sizes["words"], hidden, sizes["labels"])
    return model, Plan.from_rules(model, bag_rules(len(hidden)))
