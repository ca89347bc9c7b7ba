"""The theorems about independent subnets: one file each, with statement, constants, simulation and verdicts.

Simulations use the functions that train real models, in float64 and on small problems. A bound that holds here is not
proved by that; if one fails, it is refuted or one of its assumptions is not met.
"""

from collections.abc import Callable

from skerry.experiments.theory.families import asyncdrop, enough_pretraining, gist, loft, resist
from skerry.experiments.theory.frame.picture import draw
from skerry.experiments.theory.frame.table import to_markdown, to_rich
from skerry.experiments.theory.frame.verdict import Finding, Verdict
from skerry.experiments.theory.masked_nets import (
    aggregation_identity,
    bernoulli_masks,
    categorical_masks,
    local_decrease,
    mask_corollaries,
    masked_kernel,
    one_worker,
    zeroed_units,
)
from skerry.experiments.theory.quadratics import (
    counterexample,
    irreducible_bias,
    masked_objective,
    quadratic_rate,
    scaled_sketch,
    stationarity,
)
from skerry.experiments.theory.visits import sequential_visits, shuffled_parts

_CHECKED = (
    aggregation_identity, masked_kernel, one_worker, local_decrease, bernoulli_masks, mask_corollaries, zeroed_units,
    categorical_masks, quadratic_rate, counterexample, scaled_sketch, irreducible_bias, stationarity,
    masked_objective, sequential_visits, shuffled_parts, gist, loft, resist, asyncdrop, enough_pretraining,
)  # fmt: skip

THEOREMS: dict[str, Callable[[], Finding]] = {
    module.__name__.rpartition(".")[2].replace("_", "-"): module.check for module in _CHECKED
}
"""The check of each theorem, by the name of its file, at the sizes that ``skerry theory`` uses."""

__all__ = ["THEOREMS", "Finding", "Verdict", "draw", "to_markdown", "to_rich"]
