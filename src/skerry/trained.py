"""What a method trains: the given model, one narrow net in its place, or several narrow nets side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from skerry.model.tensors import frozen_names
from skerry.partitions.disjoint import Disjoint
from skerry.plan.dims import Axis
from skerry.plan.table import Plan
from skerry.randomness import seed_of
from skerry.subnet.extract import first_units, narrow_model, num_narrow_units
from skerry.subnet.side_by_side import side_by_side
from skerry.weights.source import FromModel, FromSubnets, Source

Start = Callable[[nn.Module], Source]
"""A function of a model that returns the source of its values."""


class Trained(Protocol):
    """What is trained in place of a model, and where its values come from."""

    def num_units(self, axis: Axis) -> int | None:
        """Return how many units of an axis each net has; None: as the partition deals them out."""
        ...

    def pieces(self, plan: Plan) -> list[Tensor] | None:
        """Return the units of the plan that each net has; None: as the partition deals them out."""
        ...

    def net(self, model: nn.Module, plan: Plan, seed: int) -> tuple[nn.Module, Plan]:
        """Return the module to train and its plan; ``model`` may be on the meta device and is not changed."""
        ...

    def source(self, model: nn.Module, plan: Plan, net: nn.Module, start: Start | None) -> Source:
        """Return the source of the values of ``net``: ``start`` of the model, or the model's own tensors without it."""
        ...


@dataclass(frozen=True)
class Given:
    """The given model itself."""

    def num_units(self, axis: Axis) -> int | None:
        """Return None."""
        return None

    def pieces(self, plan: Plan) -> list[Tensor] | None:
        """Return None."""
        return None

    def net(self, model: nn.Module, plan: Plan, seed: int) -> tuple[nn.Module, Plan]:
        """Return the model."""
        return model, plan

    def source(self, model: nn.Module, plan: Plan, net: nn.Module, start: Start | None) -> Source:
        """Return ``start`` of the net, or its own tensors."""
        return FromModel(net) if start is None else start(net)


@dataclass(frozen=True)
class Narrow:
    """A new net with the fraction ``width`` of each axis, initialized by its modules; with width 1 the model itself.

    Raises:
        ValueError: ``width`` is not above 0 and at most 1.
    """

    width: float

    def __post_init__(self) -> None:
        if not 0.0 < self.width <= 1.0:
            raise ValueError(f"width={self.width}: expected a fraction above 0, at most 1")

    def num_units(self, axis: Axis) -> int | None:
        """Return the units of the narrow net."""
        return num_narrow_units(axis, self.width)

    def pieces(self, plan: Plan) -> list[Tensor] | None:
        """Return the units of the narrow net."""
        return [first_units(plan, self.width)]

    def net(self, model: nn.Module, plan: Plan, seed: int) -> tuple[nn.Module, Plan]:
        """Return the narrow net, and a plan that deals nothing out."""
        if self.width == 1.0:
            return model, plan
        narrow = narrow_model(model, plan, self.width, seed_of(seed, "narrow"))
        return narrow, Plan.whole(narrow)

    def source(self, model: nn.Module, plan: Plan, net: nn.Module, start: Start | None) -> Source:
        """Return ``start`` of the net, or its own tensors."""
        return Given().source(model, plan, net, start)


@dataclass(frozen=True)
class Apart:
    """``num_nets`` narrow nets that share nothing: the units of each axis are dealt to them once.

    Weights between two nets do not exist. A net starts from the values of its units in the model.

    Args:
        num_nets: the number of nets.
        seed: of the dealing.
    """

    num_nets: int
    seed: int = 0

    def num_units(self, axis: Axis) -> int | None:
        """Return the number of the net with fewest."""
        return axis.num_units // self.num_nets

    def pieces(self, plan: Plan) -> list[Tensor] | None:
        """Return the units of each net."""
        return self._units(plan)

    def net(self, model: nn.Module, plan: Plan, seed: int) -> tuple[nn.Module, Plan]:
        """Return the nets side by side (``subnet/side_by_side.py``); each is one unit.

        Raises:
            ValueError: subnets share a matrix or a block, a frozen parameter lies between two axes, or an axis has
                fewer units than there are nets.
        """
        why = plan.why_dependent(model)
        if why is not None:
            raise ValueError(
                f"{why}, so subnets are not independent nets; use ist or narrow, or for a transformer "
                f"discover(..., grouped_norms={self.num_nets}); print(plan) says why it is whole"
            )
        for name in sorted(frozen_names(model)):
            if plan.between(name):
                raise ValueError(
                    f"{name}: frozen, and between two axes that are dealt out, so its weights between two nets would "
                    "be lost; leave an axis whole (plan.without), train it, or use ist or narrow"
                )
        return side_by_side(model, plan, self._units(plan))

    def source(self, model: nn.Module, plan: Plan, net: nn.Module, start: Start | None) -> Source:
        """Return the source of the nets' tensors: those of their units in the model."""
        return FromModel(net) if start is None else FromSubnets(start(model), plan, self._units(plan))

    def _units(self, plan: Plan) -> list[Tensor]:
        dealt = Disjoint(self.num_nets, self.seed).assign(plan.axes, 0)
        return [dealt.units(k) for k in range(self.num_nets)]
