"""The store of the serial runtime: the full model in memory, cut and put together in place."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skerry.exchange.routes import traffic
from skerry.merge.aggregate import aggregate_
from skerry.merge.calibrate import scaled
from skerry.model import optimizer_state
from skerry.model.optimizer_state import placed
from skerry.model.tensors import named_tensors, saved_names
from skerry.partitions.assignment import Assignment
from skerry.partitions.everything import Everything
from skerry.partitions.share import Share
from skerry.plan.table import trained_in_blocks
from skerry.runtimes.overlap import BEGAN, correction, late_names
from skerry.runtimes.runtime import KEPT, Beginning, FullModel, Handover, Report, with_worker
from skerry.subnet.cuts import Cuts
from skerry.subnet.extract import extract
from skerry.subnet.side_by_side import mean_of_nets
from skerry.subnet.slicing import take
from skerry.weights.source import FromModel, materialize


@dataclass(frozen=True)
class Whole:
    """A full model that is in memory."""

    module: nn.Module

    @property
    def inner(self) -> nn.Module:
        """The module."""
        return self.module

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield its tensors by name."""
        yield from named_tensors(self.module).items()

    def names(self, name: str) -> list[str]:
        """Return the names of a tensor in the ``state_dict``."""
        return saved_names(self.module, name)

    def whole(self) -> nn.Module:
        """Return the module."""
        return self.module

    def mean_of_nets(self, of: Callable[[nn.Module], Tensor]) -> Tensor:
        """Return the mean of ``of(net)`` over its nets."""
        return mean_of_nets(self.module, of)


class WholeModel:
    """The store that holds the whole model. The model is trained in place."""

    def __init__(self, beginning: Beginning) -> None:
        model, source, saved, device = beginning.model, beginning.source, beginning.saved, beginning.device
        self.model, self.plan, self.assignment = model, beginning.plan, beginning.assignment
        if any(tensor.is_meta for tensor in named_tensors(model).values()):
            materialize(model, source)
        elif not isinstance(source, FromModel):
            for name, tensor in named_tensors(model).items():
                tensor.copy_(source.read(name, ()))
        model.to(device)
        self.tensors = named_tensors(model) | placed({n: source.read(n, ()) for n in beginning.state}, device)
        self.bytes_sent = 0.0
        self._by_samples = beginning.algorithm is not None and beginning.algorithm.by_samples
        self._start, self._device = beginning.start, device
        self.kept: dict[int, dict[str, Tensor]] = {}
        self._began: dict[int, dict[str, Tensor]] = {}
        if saved is not None:
            for worker in range(self.assignment.num_workers):
                self.kept[worker] = placed(saved.of_worker(KEPT, worker), device)
                self._began[worker] = placed(saved.of_worker(BEGAN, worker), device)

    @property
    def layout(self) -> Assignment:
        """One worker, which has everything."""
        return Everything(1).assign(self.plan.axes, 0)

    @property
    def sizes(self) -> dict[str, Tensor]:
        """Full-size tensors on the meta device, by name."""
        return {name: torch.empty_like(tensor, device="meta") for name, tensor in self.tensors.items()}

    def subnet(self, worker: int) -> tuple[nn.Module, dict[str, Tensor]]:
        """Extract the worker's subnet and optimizer state."""
        units = self.assignment.units(worker)
        cuts, began = Cuts(self.plan, units), self._began.get(worker, {})
        state = {n: (t, cuts.of(n, t.shape)) for n, t in self.tensors.items() if optimizer_state.SEPARATOR in n}
        mine = {n: take(tensor, cut) for n, (tensor, cut) in state.items() if cut is not None}
        subnet = extract(self.model, self.plan, units)
        for name, tensor in named_tensors(subnet).items():
            if name in began:
                tensor.copy_(began[name])
        return subnet, mine

    def part(self, worker: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the worker's units, and a copy of the tensors of its subnet."""
        units = self.assignment.units(worker)
        return units, self._parts(units)

    def late(self, worker: int) -> Iterator[tuple[str, Tensor]]:
        """Yield the differences of the means from what the worker began with."""
        for name, began in self._began.get(worker, {}).items():
            yield name, correction(self.tensors[name], began)

    @torch.no_grad()
    def exchange(self, mine: list[Handover], then: Assignment, *, overlap: bool = False) -> list[Report]:
        """Aggregate."""
        self._add_new_state(mine[0].tensors)
        late = late_names(self.model, self.plan, self.assignment, then) if overlap else []
        before = [{n: self._began.get(w, self.tensors).get(n, self.tensors[n]) for n in late} for w in range(len(mine))]
        self._began = {
            w: {n: (h.tensors if h.report.good else old)[n].clone() for n in late}
            for w, (h, old) in enumerate(zip(mine, before, strict=True))
            if late
        }
        pieces = [h.tensors if h.report.good else None for h in mine]
        weights = [h.report.num_samples for h in mine] if self._by_samples else None
        aggregate_(self.tensors, self.plan, self.assignment, pieces, weights)
        due = traffic(self.plan, self.sizes, self.assignment, then).sum(1).tolist()
        self.assignment = then
        return [replace(h.report, bytes_due=d) for h, d in zip(mine, due, strict=True)]

    def full(self, share: Share) -> FullModel:
        """Return a scaled copy."""
        return Whole(scaled(self.model, self.plan, share))

    def shards(self) -> dict[str, Tensor]:
        """Return all tensors, by the names of a checkpoint."""
        return self.tensors | with_worker(BEGAN, self._began) | with_worker(KEPT, self.kept)

    def _parts(self, units: Tensor) -> dict[str, Tensor]:
        """Return a copy of the part of each tensor that the holder of ``units`` has."""
        cuts = Cuts(self.plan, units)
        found = {name: (tensor, cuts.of(name, tensor.shape)) for name, tensor in self.tensors.items()}
        return {name: take(tensor, cut) for name, (tensor, cut) in found.items() if cut is not None}

    def _add_new_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Make room for optimizer state that appears with the first step."""
        in_blocks = trained_in_blocks(self.model, self.plan)
        for name, size in optimizer_state.full_sizes(tensors, self.plan.shapes, in_blocks, self._start).items():
            if name not in self.tensors:
                self.tensors[name] = optimizer_state.blank(name, size.shape, size.dtype, self._start, self._device)
