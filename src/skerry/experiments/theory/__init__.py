"""The theorems about independent subnets as code: a file each with statement, constants, simulation and verdicts.

Simulations deal, cut, train and aggregate by the parts that train real models, in float64 and on small problems. A
bound that holds is not proved here; one that does not hold is refuted, or one of its assumptions is not met.
"""

from collections.abc import Callable

from skerry.experiments.theory.families import asyncdrop, gist, loft, resist
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
    quadratic_rate,
    scaled_sketch,
    stationarity,
)

THEOREMS: dict[str, Callable[[], Finding]] = {
    "aggregation-identity": aggregation_identity.check,
    "masked-kernel": masked_kernel.check,
    "one-worker": one_worker.check,
    "local-decrease": local_decrease.check,
    "bernoulli-masks": bernoulli_masks.check,
    "mask-corollaries": mask_corollaries.check,
    "zeroed-units": zeroed_units.check,
    "categorical-masks": categorical_masks.check,
    "quadratic-rate": quadratic_rate.check,
    "counterexample": counterexample.check,
    "scaled-sketch": scaled_sketch.check,
    "irreducible-bias": irreducible_bias.check,
    "stationarity": stationarity.check,
    "gist": gist.check,
    "loft": loft.check,
    "resist": resist.check,
    "asyncdrop": asyncdrop.check,
}
"""Each check by its name, at the sizes that ``skerry theory`` uses."""

__all__ = ["THEOREMS", "Finding", "Verdict", "draw", "to_markdown", "to_rich"]
