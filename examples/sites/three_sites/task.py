"""What the server and the sites share: the model and the settings. And what each site has: its data."""

from typing import Any

import torch
from torch import Tensor, nn

import skerry

BATCH_SIZE = 32


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``skerry.train`` and ``skerry.Session``; they must be the same everywhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 3))
    return {
        "model": model,
        "plan": skerry.discover(model, torch.randn(8, 2)),
        "algorithm": skerry.relay(config["sites"], local_steps=config["local-steps"]),
        "optimizer": lambda net: torch.optim.SGD(net.parameters(), lr=config["lr"], momentum=0.9),
        "num_rounds": config["num-server-rounds"],
        "schedule": skerry.cosine,
    }


def patients(site: int, num: int = 1200) -> tuple[Tensor, Tensor]:
    """Return the data of a site: points of three spirals, in place of rows of a database."""
    generator = torch.Generator().manual_seed(site)
    y = torch.randint(3, (num,), generator=generator)
    radius = torch.rand(num, generator=generator)
    angle = 4 * radius + 2 * torch.pi / 3 * y + 0.1 * torch.randn(num, generator=generator)
    return 1.7 * torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), y


def shards(site: int) -> skerry.Shards:
    """Return the data of a site in batches."""
    x, y = patients(site)
    return skerry.Shards(x, y, [torch.arange(len(x))], batch_size=BATCH_SIZE, seed=site)
