"""The settings of all methods of a recipe, so that each costs a worker the same operations."""

from collections.abc import Collection, Mapping
from typing import Any

Settings = Mapping[str, Any]

OF_SUBNETS = ("ist", "relay", "narrow", "ensemble", "federated_dropout", "fedrolex")
OF_REPLICAS = ("local_sgd", "diloco", "ddp", "single")


def compared(
    subnets: Settings,
    replicas: Settings,
    nested: Settings,
    own: Mapping[str, Settings],
    without: Collection[str] = (),
) -> dict[str, Settings]:
    """Return the settings of every method.

    Args:
        subnets: of methods whose workers train 1/n of each axis.
        replicas: of those whose workers train the whole model: fewer steps.
        nested: of HeteroFL, whose workers train parts of different sizes: the mean counts.
        own: what a method has to itself: its learning rate, its optimizer.
        without: methods that the recipe cannot have.
    """
    shared = dict.fromkeys(OF_SUBNETS, subnets) | dict.fromkeys(OF_REPLICAS, replicas) | {"heterofl": nested}
    return {method: {**settings, **own.get(method, {})} for method, settings in shared.items() if method not in without}
