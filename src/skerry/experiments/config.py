"""The settings of one run: changed by ``--set``, saved in ``config.json``, compared on resume."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Literal, Self, get_args, get_origin

from skerry.algorithm import StatePolicy
from skerry.choose import choose
from skerry.merge.outer import Outer
from skerry.privacy.private import Private
from skerry.runtimes.distributed.wire import WireFormat
from skerry.training.steps.settings import Deadline, Precision, StepSettings


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """Which worker holds which units. Each setting belongs to some of the partitions in ``skerry.partitions``.

    Attributes:
        reshuffle: fraction of units dealt anew each round (``Disjoint``).
        core: fraction of units that every worker holds (``Disjoint``).
        capacities: relative share of each worker, None: equal (``Disjoint``).
        fractions: fraction of each axis for each worker, None: the method's own (``Sampled``, ``Rolling``, ``Nested``).
        step: units that the window moves per round (``Rolling``).
        min_units: fewest units per worker (``Covering``).
        warmup_rounds: rounds in which every worker holds everything (``Warmup``).
        max_exposure: fraction of the nets that a worker may ever see (``Limited``).
    """

    reshuffle: float = 1.0
    core: float = 0.0
    capacities: tuple[float, ...] | None = None
    fractions: tuple[float, ...] | None = None
    step: int = 1
    min_units: int = 1
    warmup_rounds: int = 0
    max_exposure: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Asynchronous:
    """How a server that waits for nobody goes about it.

    Attributes:
        weight: of a reply; None: the method's own (``asyncdrop``, ``fedbuff``).
        drop: fraction of each axis that a client drops (``asyncdrop``).
        heterogeneous: whether units are dropped by movement (``asyncdrop``).
        buffer: replies per round (``fedbuff``).
    """

    weight: float | None = None
    drop: float = 0.25
    heterogeneous: bool = False
    buffer: int = 10


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Differential privacy, if a noise multiplier or a target is given: see ``Private``."""

    noise_multiplier: float | None = None
    target_epsilon: float | None = None
    max_grad_norm: float = 1.0
    delta: float = 1e-5
    seed: int | None = None

    @property
    def asked_for(self) -> Private | None:
        """What ``train`` is given; None: nothing is private.

        Raises:
            ValueError: a value out of range, or not one of ``noise_multiplier`` and ``target_epsilon``.
        """
        z, target = self.noise_multiplier, self.target_epsilon
        if self == Privacy():
            return None
        if z is None and target is None:
            raise ValueError(
                "private: settings are given, but nothing is private; expected private.noise_multiplier or "
                "private.target_epsilon, too"
            )
        if z is not None and target is not None:
            raise ValueError(
                f"private.noise_multiplier={z:g} and private.target_epsilon={target:g}: expected one of the two; set "
                "the other one to null"
            )
        return Private(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run.

    Attributes:
        recipe: its name; the command line sets that of your own.
        optimizer: the ``name`` of a class in ``torch.optim``, and its keyword arguments.
        model, data: what the recipe lets one change of its model and data.
        width: fraction of each axis that method ``narrow`` keeps; None: 1/workers.
        nets: of a ``relay`` or ``ensemble``, at least as many as workers; None: one per worker.
        optimizer_state: None: the method's own default.
        proximal: mu of FedProx, of method ``narrow``; 0: none.
        by_samples: whether ``narrow`` and ``local_sgd`` weight workers by their numbers of samples.
        clip_grad_norm, accumulate, precision, checkpoint_activations, compile, deadline: see ``StepSettings``.
        clients: owners of the data, of whom ``workers`` train at a time; 0: each worker has its own data.
        slowest: how many times as long as the fastest client the slowest one takes; the others lie evenly between.
        prior_adjusted: train each worker on logits plus the log prior of its labels (``log_priors``).
        device: where subnets are trained: cpu, cuda, cuda:1, mps, or auto: CUDA where there is one, else the CPU.
        threads: torch threads per process; 0: all cores if serial, else an equal part of them, at least one.
    """

    recipe: str = ""
    method: str = "ist"
    workers: int = 4
    clients: int = 0
    slowest: float = 1.0
    runtime: str = "serial"
    rounds: int = 100
    local_steps: int = 50
    batch_size: int = 128
    seed: int = 0
    split: str = "iid"
    prior_adjusted: bool = False
    partition: Dealing = field(default_factory=Dealing)
    asynchronous: Asynchronous = field(default_factory=Asynchronous)
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"name": "SGD", "lr": 0.1, "momentum": 0.9})
    optimizer_state: StatePolicy | None = None
    outer: Outer = field(default_factory=Outer)
    overlap: int = 0
    proximal: float = 0.0
    by_samples: bool = False
    schedule: str = "cosine"
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    width: float | None = None
    nets: int | None = None
    clip_grad_norm: float | None = None
    accumulate: int = 1
    precision: Precision = "fp32"
    checkpoint_activations: bool = False
    compile: bool = False
    deadline: Deadline = "none"
    private: Privacy = field(default_factory=Privacy)
    eval_every: int = 10
    eval_batch_size: int = 4096
    checkpoint_every_s: float = 10.0
    max_bad_rounds: int = 5
    threads: int = 0
    timeout_s: float = 10.0
    wire: WireFormat = "exact"
    device: str = "auto"

    def __post_init__(self) -> None:
        least = {"workers": 1, "rounds": 1, "local_steps": 1, "batch_size": 1, "max_bad_rounds": 1}
        least |= {"seed": 0, "eval_every": 0, "eval_batch_size": 1, "threads": 0, "checkpoint_every_s": 0, "overlap": 0}
        least |= {"clients": 0, "slowest": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= minimum):
                raise ValueError(f"{name}={value}: expected at least {minimum}")
        if not 0 < self.timeout_s <= 86400:
            raise ValueError(f"timeout_s={self.timeout_s}: expected more than 0 and at most 86400 seconds")
        for name, choices in (
            ("runtime", ("serial", "processes")),
            ("schedule", ("constant", "cosine")),
            ("wire", ("exact", "bf16")),
        ):
            choose(getattr(self, name), choices, name)
        StepSettings(**self.steps)
        _ = self.private.asked_for  # raises where it is out of range

    @property
    def steps(self) -> dict[str, Any]:
        """The arguments of ``train`` that say how workers take their local steps, but for optimizer and schedule."""
        return {f.name: getattr(self, f.name) for f in fields(StepSettings) if hasattr(self, f.name)}

    def change(self, settings: Mapping[str, Any]) -> Self:
        """Return a copy with ``settings`` (dotted name -> value) changed.

        A new ``optimizer.name`` starts from the defaults of that class.

        Raises:
            ValueError: an unknown name (the message gives the nearest known one), or a value of the wrong type.

        Example:
            >>> Config(recipe="digits-mlp").change({"partition.core": 0.1}).partition.core
            0.1
        """
        changed = self
        optimizer = settings.get("optimizer.name", self.optimizer.get("name"))
        if optimizer != self.optimizer.get("name"):  # another class has other arguments
            changed = replace(changed, optimizer={"name": optimizer})
        group = "private."  # at once, since one of them without another is an error
        if private := {n.removeprefix(group): value for n, value in settings.items() if n.startswith(group)}:
            changed = _change(changed, ["private"], private, "private")
        for name, value in settings.items():
            if not name.startswith(group):
                changed = _change(changed, name.split("."), value, name)
        return changed

    def to_json(self) -> dict[str, Any]:
        """Return all settings as JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Return the config that ``to_json`` wrote; unknown keys are an error."""
        return cls().change({name: value for name, value in plain.items() if name != "versions"})


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Turn ``["optimizer.lr=.3", ...]`` into a mapping. Values are parsed as JSON, or kept as text.

    Raises:
        ValueError: not of the form key=value, or a key given twice.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {text}: expected key=value, for example --set optimizer.lr=0.3")
        if name.strip() in settings:
            raise ValueError(f"--set {name.strip()}: given twice, expected once")
        settings[name.strip()] = _value(value.strip())
    return settings


_TEXT_OR_POINT = re.compile(r'"(?:[^"\\]|\\.)*"|(?<![\w.])\.(?=\d)')


def _value(text: str) -> Any:
    """Return what the JSON ``text`` says, in which .3 and -.3 are numbers, too; the text itself if it is none."""
    with_zeros = _TEXT_OR_POINT.sub(lambda found: "0." if found[0] == "." else found[0], text)
    for attempt in (text, with_zeros):
        try:
            return json.loads(attempt)
        except json.JSONDecodeError:
            continue
    return text


def _change(config: Any, path: list[str], value: Any, full: str) -> Any:
    name, rest = path[0], path[1:]
    if isinstance(config, Mapping):
        if rest:
            raise ValueError(f"unknown setting '{full}': '{name}' has no parts")
        return {**config, name: value}
    known = {f.name: getattr(config, f.name) for f in fields(config)}
    for group, parts in known.items():  # reshuffle for partition.reshuffle, lr for optimizer.lr
        names = [f.name for f in fields(parts)] if is_dataclass(parts) else parts if isinstance(parts, Mapping) else ()
        if full == name and name not in known and name in names:
            raise ValueError(f"unknown setting '{name}'; did you mean '{group}.{name}'?")
    choose(name, known, f"setting '{full}': part" if full != name else "setting")
    old = known[name]
    if rest:
        if not is_dataclass(old) and not isinstance(old, Mapping):
            raise ValueError(f"unknown setting '{full}': '{name}' is a single value; did you mean '{name}'?")
        return replace(config, **{name: _change(old, rest, value, full)})
    (kind,) = (f.type for f in fields(config) if f.name == name)
    if is_dataclass(old) and isinstance(value, Mapping):
        for part, inner in value.items():
            old = _change(old, [part], inner, f"{full}.{part}")
        return replace(config, **{name: old})
    return replace(config, **{name: _typed(kind, value, full)})


NUMBERS = tuple[float, ...]
EXPECTED = {bool: "true or false", NUMBERS: "a list of numbers, for example [1,1,2]", float: "a number", int: "int"}


def _typed(kind: Any, value: Any, name: str) -> Any:
    """Return ``value`` as the type ``kind`` of a setting, or raise ValueError."""
    optional = NoneType in get_args(kind)
    if optional:
        (kind,) = (option for option in get_args(kind) if option is not NoneType)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None and optional:
        return None
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and number and float(value).is_integer():
        return int(value)
    if kind is float and number:
        return float(value)
    if kind == NUMBERS and isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return tuple(float(v) for v in value)
    if get_origin(kind) is Literal and isinstance(value, str):
        return choose(value, get_args(kind), name)
    if kind is str and isinstance(value, str):
        return value
    if isinstance(value, Mapping) and get_origin(kind) is Mapping:
        return dict(value)
    expected = EXPECTED.get(kind, "text" if kind is str else "a group of settings")
    raise ValueError(f"{name}={value!r}: expected {expected}{', or null for its default' if optional else ''}")
