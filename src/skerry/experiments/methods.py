"""Methods by name: build the algorithm that a config names, and tell which settings it takes.

A method's settings are the arguments of its function in ``skerry.algorithms``. The config has each under the same name,
under ``partition`` or ``asynchronous``, or (``outer_lr``) under ``outer``.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any

from skerry import algorithms
from skerry.algorithm import Algorithm
from skerry.clients import Clients
from skerry.experiments.config import Asynchronous, Config, Dealing
from skerry.runtimes.elastic.generation import why_not_elastic

METHODS: dict[str, Callable[..., Algorithm]] = {
    name: getattr(algorithms, name)
    for name in (
        "ist", "relay", "resist", "narrow", "ensemble", "local_sgd", "diloco", "ddp", "single", "federated_dropout",
        "fedrolex", "heterofl", "asyncdrop", "fedbuff",
    )
}  # fmt: skip

SOME_METHODS_ONLY = (
    "asynchronous", "by_samples", "optimizer_state", "outer", "overlap", "nets", "partition", "proximal", "width",
)  # fmt: skip
"""Settings, and groups of settings, that only methods with such an argument take. All methods take the others."""


@cache
def settings_of(method: str) -> Mapping[str, str]:
    """Return, for each argument of ``method``, the dotted name of its setting."""
    groups = {"partition": Dealing, "asynchronous": Asynchronous}
    group_of = {field.name: group for group, kind in groups.items() for field in fields(kind)}
    found = {}
    for name in inspect.signature(METHODS[method]).parameters:
        first, _, part = name.partition("_")
        in_group = f"{group_of[name]}.{name}" if name in group_of else name
        found[name] = f"outer.{part}" if first == "outer" else in_group
    return found


def build(config: Config) -> Algorithm:
    """Return the algorithm that ``config`` names; a setting of None keeps the method's own default.

    Raises:
        ValueError: a setting is out of range.
    """
    arguments: dict[str, Any] = {}
    settings = {name: setting for name, setting in settings_of(config.method).items() if name != "clients"}
    for name, setting in settings.items():
        value = config
        for part in setting.split("."):
            value = getattr(value, part)
        if value is not None:
            arguments[name] = value
    clients = Clients.spread(config.clients or config.workers, config.slowest, config.seed)
    if "clients" in settings_of(config.method):
        return METHODS[config.method](clients=clients, **arguments)
    algorithm = METHODS[config.method](**arguments)
    return replace(algorithm, clients=clients) if config.clients else algorithm


def takes(method: str, setting: str) -> bool:
    """Return whether ``method`` takes ``setting``, or any setting of a group such as ``partition``."""
    if setting.split(".")[0] not in SOME_METHODS_ONLY:
        return True
    return any(taken == setting or taken.startswith(f"{setting}.") for taken in settings_of(method).values())


def for_elastic(config: Config) -> Config:
    """Return the settings of a run of ``config`` whose processes come and go: nets side by side, one for each place.

    Raises:
        ValueError: it cannot run so.
    """
    if config.partition.max_exposure < 1:
        raise ValueError("partition.max_exposure needs a fixed number of workers; leave it out")
    if given := [name for name in ("capacities", "fractions") if getattr(config.partition, name) is not None]:
        remedy = "leave it out, or give --by-speed if it followed speeds"
        raise ValueError(f"partition.{given[0]} has a value per worker, whose number changes; {remedy}")
    if config.wire != "exact":
        raise ValueError(f"wire={config.wire} is not supported there, expected exact")
    if takes(config.method, "nets") and config.nets is None:
        config = config.change({"nets": config.workers, "optimizer_state": config.optimizer_state or "reset"})
    if why := why_not_elastic(build(config)):
        raise ValueError(why)
    return config


def why_same_workers(config: Config) -> str:
    """Return why a run of ``config`` cannot go on with another number of workers, empty if it can."""
    if "workers" not in settings_of(config.method):
        return f"method '{config.method}' has one worker"
    return build(config).why_same_workers
