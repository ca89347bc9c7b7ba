"""Rules: which modules make an axis and which read it, in the words of tensor parallelism.

``Out("h0")`` on a module says that its outputs are the units of axis ``h0``, ``In("h0")`` that its inputs are. A rule
names modules by a pattern, in which each ``*`` stands for one component of the dotted name. A ``*`` in the axis name is
replaced by what the ``*`` of the pattern matched: ``{"layers.*.up": Out("layers.*.mlp")}`` makes one axis per layer.

This file says which tensor dims a rule deals out (``Entry``); ``from_rules.py`` builds the table.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

Role = Literal["out", "in"]


@dataclass(frozen=True)
class Out:
    """The module's outputs are the units of ``axis``, one output per unit."""

    axis: str


@dataclass(frozen=True)
class In:
    """The module's inputs are the units of ``axis``: k neighbouring ones per unit (1, or H*W after a flatten)."""

    axis: str


@dataclass(frozen=True)
class Heads:
    """The module's outputs are the attention heads of ``axis``, each a run of neighbouring outputs.

    If several query heads share a key and value head, the unit is the key head with its queries: give q, k and v the
    number of key heads.

    Attributes:
        axis: the axis.
        num_heads: its number of units.
        parts: how many times all heads come, one after the other: 3 for a fused q, k, v.
    """

    axis: str
    num_heads: int
    parts: int = 1


Rule = Out | In | Heads
Rules = Mapping[str, Rule | Sequence[Rule]]


@dataclass(frozen=True)
class Entry:
    """One dealt dim: ``dim`` of ``tensor`` (a dotted name) runs over the units of ``axis``."""

    tensor: str
    dim: int
    axis: str
    role: Role
    kind: str
    num_units: int | None = None
    parts: int = 1


_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORM_OVER_UNITS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def entries(model: nn.Module, rules: Rules) -> Iterator[Entry]:
    """Yield the dealt dims that ``rules`` ask for.

    Raises:
        ValueError: a pattern matches no module, or a rule cannot hold for the module it matches.
    """
    modules = dict(model.named_modules())
    for pattern, rule in rules.items():
        matches = [(name, wildcards) for name in modules if (wildcards := match(pattern, name)) is not None]
        if not matches:
            near = difflib.get_close_matches(pattern, modules, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the model has {', '.join(list(modules)[1:6])}, ..."
            raise ValueError(f"rule '{pattern}' matches no module; {hint}")
        for name, wildcards in matches:
            for one in [rule] if isinstance(rule, Rule) else rule:
                if not isinstance(one, Rule):
                    raise ValueError(
                        f"rule '{pattern}': got {one!r}, expected Out('axis'), In('axis'), Heads('axis', n) or a list"
                    )
                axis = _fill(one.axis, wildcards, pattern)
                yield from _module_entries(name, modules[name], one, axis)


def match(pattern: str, name: str) -> tuple[str, ...] | None:
    """Return what each ``*`` of ``pattern`` stands for in ``name``, None if the pattern does not match.

    ``*`` is any run of characters, ``?`` one and ``[12]`` one of these, all within one component of a dotted name.
    """
    regex = re.sub(r"\\\*", "([^.]*)", re.escape(pattern)).replace(r"\?", "[^.]")
    regex = re.sub(r"\\\[(.+?)\\\]", lambda found: f"[{found.group(1)}]".replace("\\-", "-"), regex)
    found = re.fullmatch(regex, name)
    return found.groups() if found else None


def _fill(axis: str, wildcards: tuple[str, ...], pattern: str) -> str:
    if axis.count("*") > len(wildcards):
        raise ValueError(f"rule '{pattern}': axis '{axis}' has more * than the pattern; remove some")
    for wildcard in wildcards:
        axis = axis.replace("*", wildcard, 1)
    return axis


def _module_entries(name: str, module: nn.Module, rule: Rule, axis: str) -> Iterator[Entry]:
    where = f"{name} ({type(module).__name__})"
    if isinstance(module, _NORM_OVER_UNITS):
        raise ValueError(
            f"{where}: axis '{axis}' cannot be dealt out, because the module takes its statistics across the dim, so "
            "a subnet would be normalized over other units than the full model; leave the axis whole or use BatchNorm"
        )
    kind = "channels" if isinstance(module, _CONV + _CONV_TRANSPOSE) else "neurons"
    out: dict[str, int]  # tensor -> the dim that runs over the module's outputs
    if isinstance(module, nn.Linear):
        out, into = {"weight": 0, "bias": 0}, 1
    elif isinstance(module, _CONV + _CONV_TRANSPOSE):
        if module.groups != 1:
            raise ValueError(f"{where}: groups={module.groups}, expected 1; rules cannot deal out grouped convolutions")
        out, into = ({"weight": 1, "bias": 0}, 0) if module.transposed else ({"weight": 0, "bias": 0}, 1)
    elif isinstance(module, nn.Embedding) and not isinstance(rule, In):
        out, into = {"weight": 1}, 0
    elif isinstance(module, _BATCH_NORM) and not isinstance(rule, In):
        out, into = {"weight": 0, "bias": 0, "running_mean": 0, "running_var": 0}, 0
    else:
        raise ValueError(
            f"{where}: {type(rule).__name__}('{axis}') is not supported; rules can be Out and In of Linear and Conv, "
            "Out of BatchNorm and Embedding"
        )
    if isinstance(rule, In):
        out = {"weight": into}
    role: Role = "in" if isinstance(rule, In) else "out"
    heads = (rule.num_heads, rule.parts) if isinstance(rule, Heads) else (None, 1)
    kind = "heads" if isinstance(rule, Heads) else kind
    for tensor, dim in out.items():
        if getattr(module, tensor, None) is not None:
            yield Entry(f"{name}.{tensor}" if name else tensor, dim, axis, role, kind, *heads)
