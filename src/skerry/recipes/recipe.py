"""What a recipe is: default settings, what differs from method to method, and how to build the job."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from skerry.config import Config
from skerry.evaluate import Metric
from skerry.local import Data, LossFn
from skerry.plan import Plan
from skerry.session import Start


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
