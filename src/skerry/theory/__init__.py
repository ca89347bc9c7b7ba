"""The theorems about independent subnets as code: a file each with statement, constants, simulation and verdicts.

Simulations deal, cut, train and aggregate by the parts that train real models, in float64 and on small problems. A
bound that holds is not proved here; one that does not hold is refuted, or one of its assumptions is not met.
"""

from collections.abc import Callable

from skerry.theory import (
    aggregation_identity,
    local_decrease,
    masked_kernel,
    one_worker,
)
from skerry.theory.picture import draw
from skerry.theory.table import to_markdown, to_rich
from skerry.theory.verdict import Finding, Verdict

THEOREMS: dict[str, Callable[[], Finding]] = {
    "aggregation-identity": aggregation_identity.check,
    "masked-kernel": masked_kernel.check,
    "one-worker": one_worker.check,
    "local-decrease": local_decrease.check,
}
"""Each check by its name, at the sizes that ``skerry theory`` uses."""

__all__ = ["THEOREMS", "Finding", "Verdict", "draw", "to_markdown", "to_rich"]
