"""Methods by name: build the algorithm that a config names, and tell which settings it takes.

A method's settings are the arguments of its function in ``skerry.algorithms``. The config has each under the same name,
under ``partition``, or (``outer_lr``) under ``outer``.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache

from skerry import algorithms
from skerry.algorithm import Algorithm
from skerry.experiments.config import Config, Dealing

METHODS: dict[str, Callable[..., Algorithm]] = {
    name: getattr(algorithms, name)
    for name in (
        "ist", "relay", "resist", "narrow", "ensemble", "local_sgd", "diloco", "ddp", "single", "federated_dropout",
        "fedrolex", "heterofl",
    )
}  # fmt: skip

SOME_METHODS_ONLY = ("optimizer_state", "outer", "overlap", "nets", "partition", "width")
"""Settings, and groups of settings, that only methods with such an argument take. All methods take the others."""


@cache
def settings_of(method: str) -> Mapping[str, str]:
    """Return, for each argument of ``method``, the dotted name of its setting."""
    of_partition = {field.name for field in fields(Dealing)}
    found = {}
    for name in inspect.signature(METHODS[method]).parameters:
        group, _, part = name.partition("_")
        found[name] = f"partition.{name}" if name in of_partition else f"outer.{part}" if group == "outer" else name
    return found


def build(config: Config) -> Algorithm:
    """Return the algorithm that ``config`` names; a setting of None keeps the method's own default.

    Raises:
        ValueError: a setting is out of range.
    """
    arguments = {}
    for name, setting in settings_of(config.method).items():
        value = config
        for part in setting.split("."):
            value = getattr(value, part)
        if value is not None:
            arguments[name] = value
    return METHODS[config.method](**arguments)


def takes(method: str, setting: str) -> bool:
    """Return whether ``method`` takes ``setting``, or any setting of a group such as ``partition``."""
    if setting.split(".")[0] not in SOME_METHODS_ONLY:
        return True
    return any(taken == setting or taken.startswith(f"{setting}.") for taken in settings_of(method).values())


def why_same_workers(config: Config) -> str:
    """Return why a run of ``config`` cannot go on with another number of workers, empty if it can."""
    if "workers" not in settings_of(config.method):
        return f"method '{config.method}' has one worker"
    return build(config).why_same_workers
