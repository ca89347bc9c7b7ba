"""A small training as the server and each site make it: equal arguments, not the same objects."""

from typing import Any

import torch
from made_sites import Change, MadeSites
from torch.nn import functional as F
from zoo import blobs, mlp, sgd

from skerry import Session, cosine, train
from skerry.algorithm import Algorithm
from skerry.federated import AtSite, Federated, OnSites, Site
from skerry.training import Result

ROUNDS, STEPS = 3, 2


def data_of_all(num: int) -> Any:
    """The data of all sites, which have not all as many samples."""
    return blobs(num, samples=200)


class Own:
    """The data of one site; asking for those of others fails."""

    def __init__(self, num: int, number: int) -> None:
        self._data, self._number = data_of_all(num), number
        self.num_workers = num

    def batches(self, worker: int, first_step: int, num_steps: int) -> Any:
        assert worker == self._number
        return self._data.batches(worker, first_step, num_steps)

    def num_samples(self, worker: int) -> int:
        assert worker == self._number
        return self._data.num_samples(worker)

    def sample(self, worker: int, num: int) -> Any:
        assert worker == self._number
        return self._data.sample(worker, num)


def arguments(algorithm: Algorithm, **more: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    model, plan, _ = mlp(norm=False, dropout=0.1)
    settings = {"plan": plan, "algorithm": algorithm, "optimizer": sgd, "num_rounds": ROUNDS, "schedule": cosine}
    return {"model": model, **settings, **more}


def site(algorithm: Algorithm, number: int, **more: Any) -> Site:
    session = Session(**arguments(algorithm, loss_fn=F.cross_entropy, runtime=AtSite(), **more))
    return Site(session, Own(algorithm.num_parts, number), number=number)


def joined(algorithm: Algorithm, changes: dict[int, Change] | None = None, **more: Any) -> MadeSites:
    """Sites that have all joined; ``changes``: what some make of their replies."""
    sites = MadeSites()
    for k in range(algorithm.num_parts):
        sites.join(lambda k=k: site(algorithm, k, **more), (changes or {}).get(k))
    return sites


def serially(algorithm: Algorithm, **more: Any) -> Result:
    return train(
        loss_fn=F.cross_entropy, data=data_of_all(algorithm.num_parts), verify=False, **arguments(algorithm, **more)
    )


def federated(algorithm: Algorithm, sites: MadeSites, **more: Any) -> Result:
    example = next(iter(blobs(1).batches(0, 0, 1)))
    runtime = more.pop("runtime", None) or Federated(sites.grid, deadline_s=30.0)
    data = OnSites(algorithm.num_parts, example)
    return train(loss_fn=F.cross_entropy, data=data, verify=False, runtime=runtime, **arguments(algorithm, **more))


def assert_same(ours: Result, meant: Result, *, flop: bool = True) -> None:
    """Equal tensors of the store, losses and counts."""
    mine, theirs = ours.store.shards(), meant.store.shards()
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name
    theirs_then = [r.train_loss for r in meant.history][-len(ours.history) :]
    assert [r.train_loss for r in ours.history] == theirs_then
    assert torch.equal(ours.state.trained, meant.state.trained)
    for name in ("bytes_due", "flop")[: 1 + flop]:  # a site that is lost counts nothing
        assert ours.state.totals[name] == meant.state.totals[name]
