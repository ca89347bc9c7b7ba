"""A model with tensors of all dtypes and kinds, rounds over it with made-up results, and what a round must keep."""

import numpy as np
import torch
from torch import nn

from skerry import Plan
from skerry.model.optimizer_state import SEPARATOR
from skerry.model.tensors import named_tensors
from skerry.partitions import Assignment
from skerry.plan import Axis, DealtDim
from skerry.runtimes.runtime import RESTING, Handover, Report
from skerry.subnet.cuts import Cuts
from skerry.subnet.slicing import take

X, Y, BLOCKS = Axis("x", 5, start=0), Axis("y", 4, start=5), Axis("blocks", 2, "blocks", start=9)


class Block(nn.Module):
    """Only the block's unit deals out ``whole``; axes deal out ``dealt`` and ``two`` as well."""

    def __init__(self):
        super().__init__()
        self.whole = nn.Parameter(torch.randn(3, 3))
        self.dealt = nn.Parameter(torch.randn(2, 5))
        self.register_buffer("two", torch.randn(4, 5, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))


class MixedModel(nn.Module):
    """Tensors of all dtypes and kinds, without a forward."""

    def __init__(self, complex128):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 5))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.register_buffer("v", torch.randn(5))
        self.register_buffer("three", torch.randn(5, 4, 2, 5))
        self.register_buffer("shared", torch.randn(6, 7))
        self.register_buffer("some", torch.randn(7, 2))
        self.register_buffer("precise", torch.randn(4, 3, 10, dtype=torch.float64))
        self.register_buffer("low", torch.randn(9).half())
        self.register_buffer("ints", torch.randint(0, 9, (5, 4)))
        self.register_buffer("flags", torch.rand(4, 2, 5) > 0.5)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("scalar", torch.tensor(0.5))
        self.register_buffer("angles", torch.randn(5, dtype=torch.complex64))
        if complex128:
            self.register_buffer("wide_angles", torch.randn(3, dtype=torch.complex128))
        self.register_buffer("nothing", torch.randn(0, 3))


def mixed_model(complex128=True):
    """Return the model and its plan; safetensors cannot store complex128."""
    x, y = torch.arange(5, dtype=torch.int32), torch.arange(5, 9, dtype=torch.int32)
    in_x, out_x, out_y = DealtDim(x, "in"), DealtDim(x, "out"), DealtDim(y, "out")
    pairs = DealtDim(x.repeat_interleave(2), "in")
    gaps = DealtDim(torch.tensor([-1, 0, 1, -1, 2, 3, 4], dtype=torch.int32), "out")
    dims = {
        "w": (out_y, in_x), "v": (out_x,), "three": (out_x, out_y, None, in_x), "some": (gaps, None),
        "precise": (out_y, None, pairs), "ints": (out_x, out_y), "flags": (out_y, None, in_x), "angles": (out_x,),
    }  # fmt: skip
    for k in range(2):
        dims |= {f"blocks.{k}.dealt": (None, in_x), f"blocks.{k}.two": (out_y, in_x)}
    model = MixedModel(complex128)
    shapes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
    return model, Plan((X, Y, BLOCKS), dims, shapes, blocks={"blocks.0": 9, "blocks.1": 10})


def any_assignment(units, workers, density, rng):
    """Return a random assignment in which each unit has a holder; a worker may hold none."""
    held = torch.rand(workers, units, generator=rng) < density
    held[torch.randint(0, workers, (units,), generator=rng), torch.arange(units)] = True
    return Assignment(held)


def eighths(shape, generator):
    """Return values whose sums are exact, so that the order of summing makes no difference."""
    return torch.randint(-20, 20, shape, generator=generator) / 8


def trained(subnet, worker, round, *, state=True, draw=eighths):
    """Return what a worker might hand over: random tensors and optimizer state of its subnet."""
    tensors = named_tensors(subnet)
    if state:
        for name, parameter in subnet.named_parameters():
            tensors[f"{name}{SEPARATOR}exp_avg"] = torch.empty_like(parameter.detach())
            tensors[f"{name}{SEPARATOR}step"] = torch.tensor(0.0)
    rng = torch.Generator().manual_seed(1000 * round + worker)
    for name in sorted(tensors):
        tensor = tensors[name]
        drawn = draw(tensor.shape, generator=rng)
        tensor.copy_(drawn > 0 if tensor.dtype == torch.bool else drawn)
        if tensor.is_floating_point():
            tensor[drawn == 0.5] = -0.0
    return tensors


def one_round(store, workers, then, round, bad=(), *, overlap=None, **more):
    """Run one round. A dict ``overlap`` is filled with what each worker starts from and what arrives late."""
    handovers = []
    for w in workers:
        subnet, _ = store.subnet(w)
        if overlap is not None:
            overlap[w] = (copied(named_tensors(subnet)), dict(store.late(w)))
        handovers.append(Handover(trained(subnet, w, round, **more), Report(w, w not in bad, 1.0, 0.0, 0.0)))
    return store.exchange(handovers, then, overlap=overlap is not None)


def assert_kept(plan, full, assignment, shards):
    """Check that ``shards`` hold ``full`` to the bit: in subnets, or at the owner rank for units without a holder."""
    n = assignment.num_workers
    for name, tensor in full.items():
        held = np.zeros(tensor.shape, dtype=bool)
        units = [None if d is None else d.units for d in plan.row(name, tensor.shape)] or [None] * tensor.dim()
        block = plan.block_of(name)
        for worker, kept in enumerate(shards):
            cut = Cuts(plan, assignment.units(worker)).of(name, tensor.shape)
            assert (cut is None) == (name not in kept), (name, worker)
            if cut is not None:
                assert same(take(tensor, cut), kept[name]), (name, worker)
            has = np.ones(tensor.shape, dtype=bool)
            has &= block is None or bool(assignment.held[worker, block])
            for d, ids in enumerate(units):
                if ids is not None:
                    mine = (ids < 0) | assignment.held[worker, ids.clamp(min=0)]
                    has &= mine.numpy().reshape([-1 if k == d else 1 for k in range(tensor.dim())])
            held |= has
        dealt = [d for d, ids in enumerate(units) if ids is not None]
        for at in np.argwhere(~held).tolist():
            index = tuple(at)
            home = at[dealt[0]] * n // tensor.shape[dealt[0]]
            at[dealt[0]] -= -(-home * tensor.shape[dealt[0]] // n)
            assert same(shards[home][f"{RESTING}{name}"][tuple(at)], tensor[index]), (name, index)


def same(a, b):
    return a.dtype == b.dtype and torch.equal(raw(a), raw(b))


def raw(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def copied(tensors):
    return {n: t.clone() for n, t in tensors.items()}


def all_same(a, b):
    return a.keys() == b.keys() and all(same(a[n], b[n]) for n in a)
