"""Methods by name: which algorithm a config means, and which of its settings that has a use for."""

from collections.abc import Callable
from dataclasses import dataclass

from skerry import algorithms
from skerry.algorithm import Algorithm
from skerry.experiments.config import Config

SOME_METHODS_ONLY = ("optimizer_state", "outer", "overlap", "partition", "width")
"""Settings, and groups of settings, that only those methods take which name them."""


@dataclass(frozen=True)
class Method:
    """A method of the CLI.

    Attributes:
        build: makes the algorithm.
        takes: the settings of ``SOME_METHODS_ONLY`` that it has a use for.
    """

    build: Callable[[Config], Algorithm]
    takes: frozenset[str]


def _method(build: Callable[[Config], Algorithm], *takes: str) -> Method:
    return Method(build, frozenset(takes))


METHODS: dict[str, Method] = {
    "ist": _method(
        lambda c: algorithms.ist(
            c.workers,
            local_steps=c.local_steps,
            seed=c.seed,
            reshuffle=c.partition.reshuffle,
            core=c.partition.core,
            capacities=c.partition.capacities,
            optimizer_state=c.optimizer_state,
            overlap=c.overlap,
        ),
        "optimizer_state", "overlap", "partition.reshuffle", "partition.core", "partition.capacities",
    ),
    "resist": _method(
        lambda c: algorithms.resist(
            c.workers,
            local_steps=c.local_steps,
            seed=c.seed,
            min_units=c.partition.min_units,
            warmup_rounds=c.partition.warmup_rounds,
            optimizer_state=c.optimizer_state,
            overlap=c.overlap,
        ),
        "optimizer_state", "overlap", "partition.min_units", "partition.warmup_rounds",
    ),
    "narrow": _method(
        lambda c: algorithms.narrow(
            c.workers,
            local_steps=c.local_steps,
            width=c.width or None,
            optimizer_state=c.optimizer_state,
            overlap=c.overlap,
        ),
        "optimizer_state", "overlap", "width",
    ),
    "local_sgd": _method(
        lambda c: algorithms.local_sgd(
            c.workers, local_steps=c.local_steps, optimizer_state=c.optimizer_state, overlap=c.overlap
        ),
        "optimizer_state", "overlap",
    ),
    "diloco": _method(
        lambda c: algorithms.diloco(
            c.workers, local_steps=c.local_steps, outer_lr=c.outer.lr, outer_momentum=c.outer.momentum
        ),
        "outer.lr", "outer.momentum",
    ),
    "ddp": _method(lambda c: algorithms.ddp(c.workers, local_steps=c.local_steps)),
    "single": _method(lambda c: algorithms.single(local_steps=c.local_steps)),
    "ensemble": _method(lambda c: algorithms.ensemble(c.workers, local_steps=c.local_steps, seed=c.seed)),
    "federated_dropout": _method(
        lambda c: algorithms.federated_dropout(
            c.workers,
            local_steps=c.local_steps,
            seed=c.seed,
            fractions=c.partition.fractions,
            optimizer_state=c.optimizer_state,
        ),
        "optimizer_state", "partition.fractions",
    ),
    "fedrolex": _method(
        lambda c: algorithms.fedrolex(
            c.workers,
            local_steps=c.local_steps,
            step=c.partition.step,
            fractions=c.partition.fractions,
            optimizer_state=c.optimizer_state,
        ),
        "optimizer_state", "partition.fractions", "partition.step",
    ),
    "heterofl": _method(
        lambda c: algorithms.heterofl(
            c.workers,
            local_steps=c.local_steps,
            fractions=c.partition.fractions,
            optimizer_state=c.optimizer_state,
        ),
        "optimizer_state", "partition.fractions",
    ),
}  # fmt: skip


def has_use_for(method: str, setting: str) -> bool:
    """Tell whether ``method`` has a use for ``setting``; a group such as ``partition`` if for anything in it."""
    if setting.split(".")[0] not in SOME_METHODS_ONLY:
        return True
    return any(taken == setting or taken.startswith(f"{setting}.") for taken in METHODS[method].takes)
