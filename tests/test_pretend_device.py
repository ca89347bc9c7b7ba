"""The pretended device itself: as strict as CUDA about tensors of several devices and about waiting."""

import pytest
import torch
from pretend_device import DeviceMismatch, HostWaits, no_waiting, pretend
from torch import nn

MISTAKES = {
    "a sum": lambda x: x + torch.ones(3),
    "an average of a buffer": lambda x: torch.stack([x, torch.ones(3)]).mean(0),
    "index_select": lambda x: x.index_select(0, torch.tensor([1])),
    "a matrix product": lambda x: nn.Linear(3, 2)(x),
}
WAITS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: bool((x > 0).all()),
    "cpu": lambda x: x.cpu(),
    "a mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "a copy": lambda x: torch.empty(3).copy_(x),
}
FINE = {
    "a number": lambda x: x * torch.tensor(2.0) + 1,
    "an index": lambda x: x[torch.tensor([0, 1])],
    "to the device": lambda x: torch.ones(3).to(x.device) + x,
    "made there": lambda x: torch.zeros(3, device=x.device) + x,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tensors_of_two_devices_are_refused(mistake):
    with pretend() as device, pytest.raises(DeviceMismatch):
        MISTAKES[mistake](torch.ones(3, device=device))


@pytest.mark.parametrize("wait", WAITS)
def test_waiting_is_an_error_where_it_must_not_be(wait):
    with pretend() as device:
        x = torch.ones(3, device=device)
        WAITS[wait](x)
        with no_waiting(), pytest.raises(HostWaits):
            WAITS[wait](x)


@pytest.mark.parametrize("use", FINE)
def test_what_cuda_allows_is_allowed(use):
    with pretend() as device, no_waiting():
        assert FINE[use](torch.ones(3, device=device)).device == device


def test_a_step_of_training_stays_there():
    with pretend() as device:
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).to(device)
        optimizer = torch.optim.AdamW(net.parameters())
        x, y = torch.randn(5, 4).to(device), torch.zeros(5, dtype=torch.int64, device=device)
        with no_waiting():
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        assert {t.device for t in [*net.parameters(), *net.buffers()]} == {device}
