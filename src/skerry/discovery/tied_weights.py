"""Tied weights that make units and read them: where they read what a grouped norm made, the norm takes the scale.

The full model sums over more units than a subnet, so what reads units is scaled (``merge/calibrate.py``). An embedding
that is also the head cannot be: its rows would shrink, too. The norm right before the head can, in its place. Then the
norm's scale and shift count as what reads the units, and the tied weight as what makes them.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from skerry.discovery.index_labels import Origin
from skerry.discovery.trace import Step, Trace
from skerry.model.grouped_norm import GroupedNorm


def norms_before_tied(trace: Trace, model: nn.Module) -> Mapping[Origin, frozenset[Origin]]:
    """Return, for each dim of a weight that makes units and reads them, the dims of the norm whose output it reads.

    Left out where the weight reads something else, too, or something else reads that output.
    """
    if not any(isinstance(module, GroupedNorm) for module in model.modules()):
        return {}
    roles = set(trace.constraints.roles)
    reads, makes = ({(origin, op) for origin, role, op in roles if role == want} for want in ("in", "out"))
    made = {origin for origin, _ in makes}
    before = {(origin, op): _norm_before(trace.steps, op, model) for origin, op in reads}
    norms: dict[Origin, set[str]] = {}
    for (origin, _), norm in before.items():
        norms.setdefault(origin, set()).add(norm)
    tied = {origin for origin in norms if origin in made and "" not in norms[origin]}
    others = {norm for origin in norms.keys() - tied for norm in norms[origin]}
    return {
        origin: frozenset((f"{norm}.{own}", 0) for norm in norms[origin] for own in ("weight", "bias"))
        for origin in tied
        if not norms[origin] & others
    }


def _norm_before(steps: Sequence[Step], op: int, model: nn.Module) -> str:
    """Return the grouped norm that made what step ``op`` reads; "" if it is none, or one that cannot take the scale."""
    for memory in steps[op].reads:
        for step in reversed(steps[:op]):
            if memory in step.writes and (memory not in step.reads or step.name.endswith("_")):
                norm = model.get_submodule(step.module)
                if isinstance(norm, GroupedNorm) and norm.weight is not None and not norm.offset:
                    return step.module
                break
    return ""
