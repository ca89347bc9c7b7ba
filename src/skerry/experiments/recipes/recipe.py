"""What a recipe is: default settings, the settings of each method, and how to build model, plan and data."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.choose import choose
from skerry.data.shards import Shards
from skerry.data.splits import split
from skerry.experiments.config import Config
from skerry.experiments.datasets.archives import Classification
from skerry.plan.table import Plan
from skerry.randomness import generator, seed_of
from skerry.trained import Start
from skerry.training.evaluation.metrics import Metric
from skerry.training.priors import log_priors
from skerry.training.worker import Data, LossFn
from skerry.weights.initializer import FromInitializer

Settings = Mapping[str, Any]

TRAIN_SUBNETS = ("ist", "relay", "narrow", "ensemble", "federated_dropout", "fedrolex")
TRAIN_REPLICAS = ("local_sgd", "diloco", "ddp", "single")


@dataclass(frozen=True)
class Job:
    """What ``train`` needs and a recipe builds. ``start`` gives the weights of a model on the meta device."""

    model: nn.Module
    plan: Plan
    loss_fn: LossFn
    data: Data
    test: tuple[Tensor, Tensor]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    start: Start | None = None
    logit_adjustment: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment that the command line runs by name.

    Attributes:
        summary: one line about it.
        config: the default settings.
        methods: for each method the settings that differ, chosen so that all methods cost a worker the same operations.
        build: makes the job of a config; all randomness comes from ``config.seed``.
        paper: published figures with their source, in a sentence or two, for ``docs/results.md``.
    """

    summary: str
    config: Config
    methods: Mapping[str, Settings]
    build: Callable[[Config], Job]
    paper: str = ""


def with_label_skew(recipe: Recipe, name: str, model: str) -> Recipe:
    """Return ``recipe`` with label skew and label priors, as ``name``; ``model`` begins its summary."""
    summary = f"{model}, each worker with its own mix of classes (Dirichlet .3)"
    config = recipe.config.change({"recipe": name, "split": "dirichlet:0.3", "prior_adjusted": True})
    return replace(recipe, summary=summary, config=config, paper="")


def settings_per_method(
    subnets: Settings,
    replicas: Settings,
    nested: Settings,
    own: Mapping[str, Settings],
    without: Collection[str] = (),
) -> dict[str, Settings]:
    """Return the settings of every method.

    Args:
        subnets: of methods whose workers train 1/n of each axis.
        replicas: of methods whose workers train the whole model, so with fewer steps.
        nested: of HeteroFL, whose workers train parts of different sizes; the mean over workers counts.
        own: what single methods change, such as their learning rate.
        without: methods that the recipe does not support.
    """
    shared = dict.fromkeys(TRAIN_SUBNETS, subnets) | dict.fromkeys(TRAIN_REPLICAS, replicas) | {"heterofl": nested}
    return {method: {**settings, **own.get(method, {})} for method, settings in shared.items() if method not in without}


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
    """Return the job of training ``model`` on ``train``, split between the workers of the config.

    Args:
        config: gives workers, split, batch size, seed and ``prior_adjusted``.
        model: on the meta device; each process creates only the weights that it holds.
        plan: its plan.
        train: stored inputs and targets.
        test: likewise.
        loss_fn: of the model's outputs and the targets.
        transform: maps stored inputs to the model's.
        labels: (samples,), what a split by label uses; default: the targets.
        num_classes: number of logits if the targets are classes; None: label priors are not defined.
        metrics: reported beside the loss.

    Raises:
        ValueError: ``prior_adjusted`` is set and the targets are not classes.
    """
    x, y = train
    parts = split(y if labels is None else labels, config.workers, config.split, config.seed)
    if config.prior_adjusted and num_classes is None:
        raise ValueError(
            f"prior_adjusted=true: the targets of recipe '{config.recipe}' are not single classes, so label priors are "
            "not defined; expected false"
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


def whole_number(config: Config, setting: str) -> int:
    """Return a setting such as "model.hidden".

    Raises:
        ValueError: it is not a whole number from 1.
    """
    group, name = setting.split(".")
    value = getattr(config, group)[name]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{setting}={value!r}: expected a whole number from 1")
    return value


def hidden_sizes(config: Config) -> list[int]:
    """Return the sizes of the hidden layers: ``model.hidden``, ``model.layers`` times."""
    return [whole_number(config, "model.hidden")] * whole_number(config, "model.layers")


def limited(config: Config, name: str, available: int, least: int = 1) -> int:
    """Return how many of ``available`` items the setting ``data.NAME`` uses.

    0 means all, and so does a missing setting (in runs older than the setting).

    Raises:
        ValueError: it is not 0 or a whole number from ``least`` to ``available``.
    """
    num = config.data.get(name, 0)
    if isinstance(num, bool) or not isinstance(num, int) or not (num == 0 or least <= num <= available):
        raise ValueError(f"data.{name}={num!r}: expected 0 (all) or a whole number from {least} to {available}")
    return num or available


def chosen_set(config: Config, sets: Mapping[str, Callable[[], Classification]], before: str) -> Classification:
    """Return the data that ``data.set`` names; in runs older than the setting they were ``before``.

    Raises:
        ValueError: it names none of ``sets``, or the data are not on this machine.
    """
    return sets[choose(str(config.data.get("set", before)), sets, "data.set")]()


def first_samples(config: Config, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``data.samples`` of the samples, chosen by a shuffle that is the same for all seeds."""
    num = limited(config, "samples", len(x))
    if num == len(x):
        return x, y
    chosen = torch.randperm(len(x), generator=generator("samples"))[:num]
    return x[chosen], y[chosen]
