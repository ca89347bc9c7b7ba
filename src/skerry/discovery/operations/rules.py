"""The table of all rules."""

from collections.abc import Mapping
from typing import Any

import torch

from skerry.discovery.operations import (
    attention,
    convolutions,
    creation,
    indexing,
    matrix_products,
    normalisation,
    pointwise,
    reductions,
    reshaping,
    slicing_and_joining,
)
from skerry.discovery.operations.operation import Rule, aten_name

RULES: Mapping[str, Rule] = (
    creation.rules
    | reshaping.rules
    | slicing_and_joining.rules
    | indexing.rules
    | pointwise.rules
    | reductions.rules
    | normalisation.rules
    | matrix_products.rules
    | convolutions.rules
    | attention.rules
)


def rule_of(func: Any) -> Rule | None:
    """Return the rule for an ATen operation (an overload), None if there is none.

    An operation in place has the rule of the other one; the trace joins its labels with those of the tensor it writes.
    """
    name = aten_name(func.overloadpacket)
    found = RULES.get(name) or RULES.get(name.removesuffix("_"))
    return found or (pointwise.pointwise if torch.Tag.pointwise in func.tags else None)
