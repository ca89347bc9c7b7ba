"""What a recipe is: default settings, what differs from method to method, and how to build the job."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.data.shards import Shards
from skerry.data.splits import split
from skerry.experiments.config import Config
from skerry.plan.table import Plan
from skerry.randomness import generator, seed_of
from skerry.trained import Start
from skerry.training.evaluation.metrics import Metric
from skerry.training.priors import log_priors
from skerry.training.worker import Data, LossFn
from skerry.weights.initializer import FromInitializer


@dataclass(frozen=True)
class Job:
    """The objects that training needs and that a recipe knows how to build; ``start`` for a model on meta."""

    model: nn.Module
    plan: Plan
    loss_fn: LossFn
    data: Data
    test: tuple[Tensor, Tensor]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    start: Start | None = None
    logit_adjustment: Tensor | None = None


def job(
    config: Config,
    model: nn.Module,
    plan: Plan,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    loss_fn: LossFn = F.cross_entropy,
    transform: Callable[[Tensor], Tensor] = lambda x: x,
    labels: Tensor | None = None,
    num_classes: int | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Job:
    """Return the job of learning ``train``, dealt to the workers of the config, with ``model`` on meta.

    Args:
        config: workers, split, batch size and seed, and whether logits are adjusted by priors.
        model: on the meta device: each process makes only the weights that it holds.
        plan: its plan.
        train: inputs as stored, and targets.
        test: likewise.
        loss_fn: of what the model returns and the targets.
        transform: from inputs as stored to the model's.
        labels: what splits by label go by, if not the targets.
        num_classes: where the targets are classes, the number of logits; None: there are no priors of them.
        metrics: to report beside the loss.

    Raises:
        ValueError: the config wants logits adjusted, and the targets are not classes.
    """
    x, y = train
    parts = split(y if labels is None else labels, config.workers, config.split, config.seed)
    if config.prior_adjusted and num_classes is None:
        raise ValueError(
            f"prior_adjusted=true: the targets of recipe '{config.recipe}' are not single classes, so workers have no "
            "priors of them; expected false"
        )
    return Job(
        model=model,
        plan=plan,
        loss_fn=loss_fn,
        data=Shards(x, y, parts, batch_size=config.batch_size, seed=config.seed, transform=transform),
        test=(transform(test[0]), test[1]),
        metrics=metrics or {},
        start=partial(FromInitializer, seed=seed_of(config.seed, "model")),
        logit_adjustment=log_priors(y, parts, num_classes) if config.prior_adjusted and num_classes else None,
    )


def how_many(config: Config, name: str, there: int, least: int = 1) -> int:
    """Return the number of ``there`` that ``data.NAME`` takes; 0, or a run of before there was this setting: all.

    Raises:
        ValueError: not a whole number, or fewer than ``least``, or more than there are.
    """
    num = config.data.get(name, 0)
    if isinstance(num, bool) or not isinstance(num, int) or not (num == 0 or least <= num <= there):
        raise ValueError(f"data.{name}={num!r}: expected 0 (all) or a whole number from {least} to {there}")
    return num or there


def first_samples(config: Config, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first ``data.samples`` of a shuffle that is the same for all seeds; all of them as they stand."""
    num = how_many(config, "samples", len(x))
    if num == len(x):
        return x, y
    chosen = torch.randperm(len(x), generator=generator("samples"))[:num]
    return x[chosen], y[chosen]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One line of the CLI.

    Attributes:
        summary: one line for people.
        config: the settings it starts from.
        methods: for each method the settings that differ, chosen so that all cost a worker the same operations.
        build: makes the job of a config; all randomness from ``config.seed``.
        paper: what is published, in a sentence or two with its source, for ``docs/results.md``.
    """

    summary: str
    config: Config
    methods: Mapping[str, Mapping[str, Any]]
    build: Callable[[Config], Job]
    paper: str = ""
