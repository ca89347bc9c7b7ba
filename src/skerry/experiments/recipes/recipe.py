"""What a recipe is: default settings, the settings of each method, the data, and how to build model and plan."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.choose import choose
from skerry.data.shards import Shards
from skerry.data.splits import split
from skerry.experiments.config import Config
from skerry.experiments.datasets.archives import Classification
from skerry.experiments.methods import METHODS
from skerry.experiments.recipes.augmented import Augment, Augmented
from skerry.experiments.recipes.graph_task import GraphTask
from skerry.model.inputs import Inputs
from skerry.model.tensors import named_tensors
from skerry.plan.table import Plan
from skerry.predictor import Scaling, Signature
from skerry.randomness import generator, own_random_state, seed_of
from skerry.trained import Start
from skerry.training.evaluation.metrics import Metric
from skerry.training.priors import log_priors
from skerry.training.worker import Data, LossFn
from skerry.weights.initializer import FromInitializer

Settings = Mapping[str, Any]

TRAIN_SUBNETS = ("ist", "relay", "narrow", "ensemble", "federated_dropout", "fedrolex")
TRAIN_REPLICAS = ("local_sgd", "diloco", "ddp", "single")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a recipe trains on.

    Attributes:
        train, test: stored samples, (num_samples, ...), and their targets.
        scaling: turns stored samples into the model's inputs; None: they are that already.
        classes: the names of the classes, or how many there are, if the model's outputs are their logits; None: targets
            are not classes.
        sizes: what the model is built from besides the settings. A run's folder keeps them, so that its model is loaded
            without the data.
        tokenizer: see ``Signature``.
        loss_fn: of the model's outputs and the targets.
        split_by: (num_samples,), what a split by label uses; None: the targets.
        metrics: reported beside the loss.
        augment: changes each batch of training inputs at random.

    Raises:
        ValueError: samples and targets are not tensors, there are none or not as many of both, ``scaling`` is no
            ``Scaling``, or a label is not one of ``classes`` (labels in rows may be padded with negative ones).
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    scaling: Scaling | None = None
    classes: Sequence[str] | int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    tokenizer: str = ""
    loss_fn: LossFn = F.cross_entropy
    split_by: Tensor | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if not (self.scaling is None or isinstance(self.scaling, Scaling)):
            kind = type(self.scaling).__name__
            raise ValueError(f"scaling: {kind}, expected a Scaling or None (scale the samples yourself for other ones)")
        for name, pair in (("train", self.train), ("test", self.test)):
            if not (isinstance(pair, tuple | list) and [isinstance(each, Tensor) for each in pair] == [True, True]):
                raise ValueError(f"{name}: expected a pair of tensors, samples and targets")
            nums = [len(each) if each.dim() else 0 for each in pair]
            if nums[0] != nums[1] or not nums[0]:
                raise ValueError(f"{name}: {nums[0]} samples and {nums[1]} targets, expected as many, at least one")
            self._check_labels(name, pair[1])

    def _check_labels(self, name: str, labels: Tensor) -> None:
        num = self.num_classes
        if num is None or labels.is_floating_point() or not labels.numel():
            return
        least, most = map(int, labels.long().aminmax())
        if most >= num:
            raise ValueError(f"classes: {num}, but targets of {name} are up to {most}; expected {most + 1} or more")
        if least < 0 and labels.dim() == 1:
            raise ValueError(f"{name}: targets are down to {least}, expected classes from 0 to {num - 1}")

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None if targets are not classes."""
        return self.classes if self.classes is None or isinstance(self.classes, int) else len(self.classes)

    @property
    def signature(self) -> Signature:
        """What a model of it takes and returns."""
        x, classes = self.train[0], self.classes
        return Signature(
            shape=tuple(x.shape[1:]),
            dtype=str(x.dtype).removeprefix("torch."),
            scaling=self.scaling,
            classes=classes if classes is None or isinstance(classes, int) else tuple(classes),
            sizes=self.sizes,
            tokenizer=self.tokenizer,
        )

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """The test set, as the model takes it."""
        return self._scale(self.test[0]), self.test[1]

    def data(self, config: Config) -> Data:
        """Return the data of all workers."""
        shards = Shards(
            *self.train, self._parts(config), batch_size=config.batch_size, seed=config.seed, transform=self._scale
        )
        return shards if self.augment is None else Augmented(shards, self.augment, config.seed)

    def log_priors(self, config: Config) -> Tensor | None:
        """Return each worker's log prior of each class where the config wants it.

        Raises:
            ValueError: it does, and the targets are not single classes.
        """
        if not config.prior_adjusted:
            return None
        if self.num_classes is None or self.train[1].dim() != 1:
            raise ValueError(
                f"prior_adjusted=true: the targets of recipe '{config.recipe}' are not single classes, so label "
                "priors are not defined; expected false"
            )
        return log_priors(self.train[1], self._parts(config), self.num_classes)

    def _scale(self, x: Tensor) -> Tensor:
        return x if self.scaling is None else self.scaling(x)

    def _parts(self, config: Config) -> Sequence[Tensor]:
        by = self.train[1] if self.split_by is None else self.split_by
        return split(by, config.clients or config.workers, config.split, config.seed)


@dataclass(frozen=True)
class Job:
    """What ``train`` needs; ``start`` gives the weights of a model on the meta device."""

    model: nn.Module
    plan: Plan
    loss_fn: LossFn
    data: Data
    test: tuple[Inputs, Tensor]
    metrics: Mapping[str, Metric]
    start: Start | None
    logit_adjustment: Tensor | None
    signature: Signature


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment that the command line runs.

    Attributes:
        summary: one line about it.
        config: the default settings.
        methods: for each method the settings that differ. Those of the package's recipes are chosen so that all methods
            cost a worker the same operations.
        task: a function of a config that returns the data.
        model: a function of a config and of ``Task.sizes`` that returns the model and its plan. A model on the meta
            device is initialized as PyTorch's modules do, one with values starts from them.
        paper: published figures with their source, in a sentence or two, for ``docs/results.md``.
    """

    summary: str
    config: Config
    methods: Mapping[str, Settings] = field(default_factory=lambda: {method: {} for method in METHODS})
    task: Callable[[Config], Task | GraphTask]
    model: Callable[[Config, Mapping[str, int]], tuple[nn.Module, Plan]]
    paper: str = ""

    def net(self, config: Config, sizes: Mapping[str, int]) -> tuple[nn.Module, Plan]:
        """Return the model and its plan; the same values for the same ``config.seed``.

        Raises:
            ValueError: ``model`` returns something else.
        """
        with own_random_state(seed_of(config.seed, "model")):
            made = self.model(config, sizes)
        if not isinstance(made, tuple) or [*map(isinstance, made, (nn.Module, Plan))] != [True, True]:
            raise ValueError(
                f"recipe '{config.recipe}': its model function returns {type(made).__name__}, expected a module and "
                "its plan, such as net, skerry.discover(net, x)"
            )
        return made

    def build(self, config: Config) -> Job:
        """Return the job of ``config``; all randomness comes from ``config.seed``.

        Raises:
            ValueError: a setting of model or data is wrong, or ``prior_adjusted`` is set and the targets are not single
                classes.
        """
        with _all_seeded(seed_of(config.seed, "task")):  # a resumed run must find the same samples
            task = self.task(config)
        if not isinstance(task, Task | GraphTask):
            raise ValueError(
                f"recipe '{config.recipe}': its task function returns {type(task).__name__}, expected a Task"
            )
        model, plan = self.net(config, task.sizes)
        on_meta = any(tensor.is_meta for tensor in named_tensors(model).values())
        priors = task.log_priors(config)
        return Job(
            model=model,
            plan=plan,
            loss_fn=task.loss_fn,
            data=task.data(config),
            test=task.held_out,
            metrics=task.metrics,
            start=partial(FromInitializer, seed=seed_of(config.seed, "model")) if on_meta else None,
            logit_adjustment=priors,
            signature=task.signature,
        )


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


@contextmanager
def _all_seeded(seed: int) -> Iterator[None]:
    """Run a block with the random states of torch, numpy and Python seeded; the caller's come back."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with own_random_state(seed):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
