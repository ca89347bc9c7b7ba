"""Pieces of changed members, against the serial runtime's ``aggregate_``."""

import pytest
import torch
from torch import nn

from skerry import discover
from skerry.exchange.owners import owned_cut
from skerry.merge.aggregate import aggregate_
from skerry.model.tensors import named_tensors
from skerry.partitions import Disjoint
from skerry.plan.table import Plan
from skerry.runtimes.elastic.pieces import Role, deal_again, num_bytes, packed, parts, unpacked
from skerry.runtimes.runtime import RESTING
from skerry.subnet.slicing import take


def _pieces(plan, full, layout, noise):
    """What each worker stores of a model, with other values in its subnet; owned elements in subnets are old."""
    pieces = []
    for worker in range(layout.num_workers):
        piece = {}
        for key, name, cut in parts(plan, full, layout, worker):
            piece[key] = take(full[name], cut)
            if not key.startswith(RESTING) and full[name].is_floating_point():
                piece[key] += noise * torch.randn(piece[key].shape)
        pieces.append(piece)
    return pieces


@pytest.mark.parametrize("core", [0.0, 0.25])
@pytest.mark.parametrize("lost", [(), (1,), (0, 2)])
def test_what_new_members_get_is_what_a_serial_run_has_if_the_lost_are_refused(core, lost):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    plan: Plan = discover(model, torch.randn(4, 5))
    full = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    layout, then = Disjoint(3, seed=1, core=core).assign(plan.axes, 0), Disjoint(4, seed=1).assign(plan.axes, 1)
    began, trained = _pieces(plan, full, layout, 0.0), _pieces(plan, full, layout, 1.0)
    roles = [Role(worker, worker in lost, worker not in lost) for worker in range(3)]
    expected = {name: tensor.clone() for name, tensor in full.items()}
    subnets = [{key: t for key, t in piece.items() if not key.startswith(RESTING)} for piece in trained]
    aggregate_(expected, plan, layout, [None if worker in lost else subnets[worker] for worker in range(3)])

    sizes = {name: tensor.to("meta") for name, tensor in full.items()}
    mine = [{rank: began[rank] if rank in lost else trained[rank]} if rank < 3 else {} for rank in range(4)]
    told: list[list[torch.Tensor]] = [[] for _ in range(4)]
    for rank in range(4):  # what each member brings to each sum
        deal_again(plan, sizes, mine[rank], roles, layout, then, rank, lambda t, own=told[rank]: own.append(t) or t)
    sums = [torch.stack(each).sum(0) for each in zip(*told, strict=True)]
    for rank in range(4):
        later = iter(sums)
        new = deal_again(plan, sizes, mine[rank], roles, layout, then, rank, lambda t, later=later: next(later))
        for key, name, cut in parts(plan, sizes, then, rank):
            torch.testing.assert_close(new[key], take(expected[name], cut), rtol=1e-7, atol=0)
        assert all(owned_cut(plan, n, t.shape, rank, 4) is None or f"{RESTING}{n}" in new for n, t in full.items())


def test_a_piece_is_the_same_after_it_was_sent():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    plan = discover(model, torch.randn(4, 5))
    full, layout = named_tensors(model), Disjoint(3).assign(plan.axes, 0)
    for worker, piece in enumerate(_pieces(plan, full, layout, 1.0)):
        sent = packed(piece, [key for key, _, _ in parts(plan, full, layout, worker)])
        assert len(sent) == num_bytes(plan, full, layout, worker)
        came = unpacked(sent, plan, full, layout, worker)
        assert came.keys() == piece.keys()
        assert all(torch.equal(came[key], piece[key]) for key in piece)
