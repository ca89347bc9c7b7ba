"""What is known to end badly before any training: from a plan and the units that a subnet has, without data."""

from collections.abc import Mapping, Sequence

from skerry.plan.dims import Axis, Row

FEW_UNITS = 4
"""The limit of units per worker; a unit that is a head or a block has many neurons, and does not count."""


def bottleneck(axes: Sequence[Axis], smallest: Sequence[int]) -> tuple[str, str] | None:
    """Return the axis of which a subnet has so few neurons or channels that little gets through, and what is wrong.

    Args:
        axes: of the plan.
        smallest: for each axis the number of units of the worker with fewest.
    """
    dealt = [(few, axis) for few, axis in zip(smallest, axes, strict=True) if few < min(FEW_UNITS, axis.num_units)]
    tight = [(few, axis) for few, axis in dealt if axis.kind in ("neurons", "channels")]
    if not tight:
        return None
    few, axis = min(tight, key=lambda pair: pair[0])
    return axis.name, (
        f"bottleneck: axis '{axis.name}' has {axis.num_units} units, and a subnet only {few}, which limits what "
        "passes through it"
    )


def lone_units(axes: Sequence[Axis], dims: Mapping[str, Row], smallest: Sequence[int]) -> tuple[str, str] | None:
    """Return an axis whose units read each other (a residual stream) and of which a subnet has one, and what is wrong.

    A weight between two of its units is never trained, and the full model has them all.

    Args:
        axes: of the plan.
        dims: of the plan.
        smallest: for each axis the number of units of the worker with fewest.
    """
    for few, axis in zip(smallest, axes, strict=True):
        name = next((name for name, row in dims.items() if _reads_itself(row, axis)), None)
        if few == 1 < axis.num_units and name is not None:
            return axis.name, (
                f"one unit per worker: a subnet has 1 of the {axis.num_units} units of axis '{axis.name}', so "
                f"weights of {name} between two units are never trained"
            )
    return None


def _reads_itself(row: Row, axis: Axis) -> bool:
    own = (dim for dim in row if dim is not None)
    roles = {d.role for d in own if bool(((d.units >= axis.start) & (d.units < axis.units.stop)).any())}
    return roles == {"in", "out"}
