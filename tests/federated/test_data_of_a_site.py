"""A site's own loader, against the numbers of the samples that are read from it."""

from typing import Any

import pytest
import torch
from federation import arguments, federated
from made_sites import MadeSites
from torch.nn import functional as F
from torch.utils.data import DataLoader

from skerry import Session, narrow
from skerry.federated import AtSite, Federated, Site

pytestmark = [
    pytest.mark.usefixtures("no_costs", "clock"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]
SITES, SAMPLES, STEPS, ROUNDS = 3, 24, 2, 3
BY_SAMPLES = narrow(SITES, local_steps=STEPS, by_samples=True)


def in_this_process(loader: DataLoader[Any]) -> Any:
    return (loader.collate_fn([loader.dataset[k] for k in numbers]) for numbers in loader.batch_sampler)


@pytest.mark.parametrize("processes", [0, 1, SITES])
def test_a_site_reads_all_of_its_loader_whatever_loads_it(processes, monkeypatch):
    """``DataLoader.num_workers`` is the number of processes that load, and not one of sites."""
    monkeypatch.setattr(DataLoader, "_get_iterator", in_this_process)  # processes are not started
    read = [set[int]() for _ in range(SITES)]

    def make(number: int) -> Site:
        def joined(samples: list[int]) -> Any:
            read[number].update(samples)
            return torch.ones(len(samples), 9), torch.tensor(samples) % 4

        loader = DataLoader(range(SAMPLES), batch_size=4, collate_fn=joined, num_workers=processes)
        session = Session(**arguments(BY_SAMPLES, loss_fn=F.cross_entropy, runtime=AtSite()))
        return Site(session, loader, number=number)

    made = MadeSites()
    for k in range(SITES):
        made.join(lambda k=k: make(k))
    runtime = Federated(made.grid, patience_s=5.0, poll_s=1.0, at_least=SITES)
    ours = federated(BY_SAMPLES, made, runtime=runtime)
    assert [record.refused for record in ours.history] == [()] * ROUNDS
    assert read == [set(range(SAMPLES))] * SITES
