"""All workers in this process, one after the other, and the full model, too: slow and obvious, the meaning of all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skerry.exchange.routes import traffic
from skerry.merge.aggregate import aggregate_
from skerry.merge.calibrate import scaled
from skerry.model import optimizer_state
from skerry.model.tensors import named_tensors, saved_names
from skerry.partitions.assignment import Assignment
from skerry.partitions.everything import Everything
from skerry.plan.table import trained_in_blocks
from skerry.runtimes.overlap import BEGAN, correction, late_names
from skerry.runtimes.runtime import Beginning, FullModel, Handover, Kept, Report, named_kept
from skerry.subnet.cuts import Cuts
from skerry.subnet.extract import extract
from skerry.subnet.slicing import take
from skerry.weights.source import FromModel, materialize


class Serial:
    """The runtime in which everything is here already."""

    def __init__(self) -> None:
        self.rank = 0
        self.num_processes = 1

    def mine(self, num_workers: int) -> list[int]:
        """All workers."""
        return list(range(num_workers))

    def keep(self, beginning: Beginning) -> "WholeModel":
        """Keep the model itself."""
        return WholeModel(beginning)

    def synchronized(self, module: nn.Module) -> tuple[nn.Module, Callable[[Tensor], None]]:
        """Refuse: workers run one after the other."""
        raise ValueError(
            "gradients cannot be averaged in every step where workers run one after the other; start one process a "
            "worker (--set runtime=processes, skerry.launch or torchrun)"
        )

    def total(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``."""
        return tensor

    def at(self, round: int, stage: str) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Whole:
    """A full model that is in memory."""

    module: nn.Module

    @property
    def inner(self) -> nn.Module:
        """The module."""
        return self.module

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Return its tensors."""
        yield from named_tensors(self.module).items()

    def names(self, name: str) -> list[str]:
        """Return the names of a tensor that are saved."""
        return saved_names(self.module, name)

    def whole(self) -> nn.Module:
        """Return it."""
        return self.module


class WholeModel:
    """The store that has the whole model: it is trained in place."""

    def __init__(self, beginning: Beginning) -> None:
        model, plan, source, assignment = beginning.model, beginning.plan, beginning.source, beginning.assignment
        self.model, self.plan, self.assignment = model, plan, assignment
        if any(tensor.is_meta for tensor in named_tensors(model).values()):
            materialize(model, source)
        elif not isinstance(source, FromModel):
            for name, tensor in named_tensors(model).items():
                tensor.copy_(source.read(name, ()))
        device = next(iter(model.parameters())).device
        of_optimizer = {name: source.read(name, ()) for name in beginning.state}
        # Counts stay where optimizers want them.
        self.tensors = named_tensors(model) | {n: t.to(device) if t.dim() else t for n, t in of_optimizer.items()}
        self.bytes_sent = 0.0
        self._subnets: dict[int, tuple[Tensor, nn.Module]] = {}  # as long as a worker keeps its units
        self._start = beginning.start
        workers = range(assignment.num_workers) if isinstance(source, Kept) else ()
        own = {w: source.kept_by(w) for w in workers if isinstance(source, Kept)}
        self.kept = {w: {n: t.to(device) if t.dim() else t for n, t in kept.items()} for w, kept in own.items()}
        kept = (source.own(0, self.layout, BEGAN) if isinstance(source, Kept) else None) or {}
        self._began: dict[int, dict[str, Tensor]] = {}
        for key, tensor in kept.items():
            worker, _, name = key.removeprefix(BEGAN).partition("::")
            self._began.setdefault(int(worker), {})[name] = tensor.to(device)

    @property
    def layout(self) -> Assignment:
        """One worker, which has everything."""
        return Everything(1).assign(self.plan.axes, 0)

    @property
    def sizes(self) -> dict[str, Tensor]:
        """Full-size tensors on the meta device."""
        return {name: torch.empty_like(tensor, device="meta") for name, tensor in self.tensors.items()}

    def subnet(self, worker: int) -> tuple[nn.Module, dict[str, Tensor]]:
        """Cut the worker's subnet and optimizer state out."""
        units = self.assignment.units(worker)
        cuts, began = Cuts(self.plan, units), self._began.get(worker, {})
        state = {n: (t, cuts.of(n, t.shape)) for n, t in self.tensors.items() if optimizer_state.SEPARATOR in n}
        mine = {n: take(tensor, cut) for n, (tensor, cut) in state.items() if cut is not None}
        known, subnet = self._subnets.get(worker, (units.new_empty(0), None))
        if subnet is None or not torch.equal(known, units):
            subnet = extract(self.model, self.plan, units)
            self._subnets[worker] = units, subnet
        for name, tensor in named_tensors(subnet).items():
            cut = cuts.of(name)
            assert cut is not None
            tensor.copy_(began[name] if name in began else take(self.tensors[name], cut))
        return subnet, mine

    def late(self, worker: int) -> Iterator[tuple[str, Tensor]]:
        """Return what is missing to the mean."""
        for name, began in self._began.get(worker, {}).items():
            yield name, correction(self.tensors[name], began)

    @torch.no_grad()
    def exchange(self, mine: list[Handover], then: Assignment, *, overlap: bool = False) -> list[Report]:
        """Aggregate."""
        some = mine[0].tensors
        in_blocks = trained_in_blocks(self.model, self.plan)
        for name, size in optimizer_state.full_sizes(some, self.plan.shapes, in_blocks).items():
            if name not in self.tensors:  # optimizer state appears with the first step
                device = next(iter(some.values())).device
                self.tensors[name] = optimizer_state.blank(name, size.shape, size.dtype, self._start, device)
        late = late_names(self.model, self.plan, self.assignment, then) if overlap else []
        before = [{n: self._began.get(w, self.tensors).get(n, self.tensors[n]) for n in late} for w in range(len(mine))]
        self._began = {
            w: {n: (h.tensors if h.report.good else old)[n].clone() for n in late}
            for w, (h, old) in enumerate(zip(mine, before, strict=True))
            if late
        }
        pieces = [h.tensors if h.report.good else None for h in mine]
        aggregate_(self.tensors, self.plan, self.assignment, pieces)
        due = traffic(self.plan, self.sizes, self.assignment, then).sum(1).tolist()
        self.assignment = then
        return [replace(h.report, bytes_due=d) for h, d in zip(mine, due, strict=True)]

    def full(self, share: Tensor) -> FullModel:
        """Return a scaled copy."""
        return Whole(scaled(self.model, self.plan, share))

    def shards(self) -> dict[str, Tensor]:
        """Return all tensors, and what workers begin the next round with."""
        began = {f"{BEGAN}{w}::{name}": t for w, own in self._began.items() for name, t in own.items()}
        return self.tensors | began | named_kept(self.kept)
