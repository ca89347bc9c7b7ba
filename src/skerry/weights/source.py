"""Sources: where the values of full-size tensors come from, one part at a time.

Where no process holds the full model, the model is on the ``meta`` device, and each process draws or reads only the
part of each tensor that it stores. A source returns the same part, to the bit, in every process.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from skerry.model.tensors import fill_, named_tensors
from skerry.plan.table import Plan
from skerry.subnet.cuts import Cuts
from skerry.subnet.index import Cut
from skerry.subnet.slicing import take


class Source(Protocol):
    """Where the values of full-size tensors come from."""

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return the part ``cut`` of a full-size tensor, as a new CPU tensor.

        Args:
            name: the tensor's first name in the model; other names of a tied tensor are not known.
            cut: which part; empty for the whole tensor.
        """


class FromModel:
    """The tensors of a model, with the values that they have when they are read.

    Args:
        model: has its tensors on a real device.

    Raises:
        ValueError: a tensor is on meta.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors = named_tensors(model)
        for name, tensor in self._tensors.items():
            if tensor.is_meta:
                raise ValueError(f"{name} is on meta and has no values; start from FromInitializer or FromFiles")

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return a copy of the part of ``name``."""
        return take(self._tensors[name], cut).cpu()


class FromSubnets:
    """The tensors of subnets side by side (``SideBySide``), each a part of a tensor of the full model.

    Args:
        source: of the full model.
        plan: its plan.
        nets: for each subnet the global ids of its units, int64.
    """

    def __init__(self, source: Source, plan: Plan, nets: Sequence[Tensor]) -> None:
        self._source = source
        self._cuts = [Cuts(plan, units) for units in nets]

    def read(self, name: str, cut: Cut = ()) -> Tensor:
        """Return the part of ``name``."""
        _, net, own = name.split(".", 2)  # nets.K.NAME
        return take(self._source.read(own, self._cuts[int(net)].of(own) or ()), cut)


def materialize(model: nn.Module, source: Source) -> nn.Module:
    """Give ``model`` the whole tensors of ``source``, on the CPU; tied ones stay tied.

    Args:
        model: on meta; it is changed.
        source: of its tensors.

    Returns:
        ``model``.

    Example:
        >>> import torch
        >>> from skerry.weights import FromInitializer
        >>> with torch.device("meta"):
        ...     model = nn.Linear(4, 3)
        >>> materialize(model, FromInitializer(model, seed=0))(torch.ones(4)).shape
        torch.Size([3])
    """
    return fill_(model, {name: source.read(name) for name in named_tensors(model)})
