"""The shard: what one process stores of the full model between rounds, and its names in checkpoint files."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.exchange.owners import owned_cut
from skerry.model.optimizer_state import placed
from skerry.runtimes.overlap import BEGAN
from skerry.runtimes.runtime import KEPT, RESTING, Beginning, with_worker
from skerry.subnet.cuts import Cuts

CPU = torch.device("cpu")


@dataclass(eq=False)
class Shard:
    """What the process of one worker stores.

    Attributes:
        tensors: the narrow tensors of its subnet, with optimizer state that travels.
        owned: the parts that it owns of tensors whose elements may be in no subnet (``exchange/owners.py``), on the
            CPU. Elements that are in a subnet now have old values there.
        began: what its worker begins the round with of parameters whose mean arrives late; ``tensors`` has the mean.
        kept: what its worker keeps for itself, under the worker's number.
    """

    tensors: dict[str, Tensor]
    owned: dict[str, Tensor]
    began: dict[str, Tensor]
    kept: dict[int, dict[str, Tensor]]

    def named(self, worker: int) -> dict[str, Tensor]:
        """Return everything under the names that it has in a checkpoint."""
        owned = {f"{RESTING}{name}": tensor for name, tensor in self.owned.items()}
        return self.tensors | owned | with_worker(BEGAN, {worker: self.began}) | with_worker(KEPT, self.kept)


def first_shard(beginning: Beginning, sizes: Mapping[str, Tensor], worker: int) -> Shard:
    """Return what the process of ``worker`` stores at the start.

    It is read from a checkpoint's file of this process if that was written for the same assignment, else part by part
    from the source.

    Args:
        beginning: the model, and where its values come from.
        sizes: full-size tensors on the meta device, by name, with optimizer state that travels.
        worker: the worker of this process.
    """
    plan, source, assignment, saved = beginning.plan, beginning.source, beginning.assignment, beginning.saved
    stored = (saved.own(worker, assignment) if saved is not None else None) or {}
    cuts = Cuts(plan, assignment.units(worker))
    tensors, owned = {}, {}
    for name, size in sizes.items():
        cut, own = cuts.of(name, size.shape), owned_cut(plan, name, size.shape, worker, assignment.num_workers)
        if cut is not None:
            tensors[name] = stored[name] if name in stored else source.read(name, cut)
        if own is not None:
            owned[name] = stored[f"{RESTING}{name}"] if f"{RESTING}{name}" in stored else source.read(name, own)
    began, kept = (
        placed(saved.of_worker(prefix, worker), beginning.device) if saved else {} for prefix in (BEGAN, KEPT)
    )
    return Shard(placed(tensors, beginning.device), owned, began, {worker: kept})
