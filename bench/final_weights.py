"""Prints a digest of the final weights of eight small runs, to show that a change of the code changes no result.

    python bench/final_weights.py > before.txt     # on the commit before
    python bench/final_weights.py | diff before.txt -

Digests depend on the machine and on torch, so compare two commits on one machine; do not store them. The runs cover all
ways of dealing units (new subnets, partly new ones, a core, capacities, blocks, sampled units), all policies for
optimizer state, overlap, an outer optimizer, a convolutional net, and the processes runtime.
"""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import skerry

WORKERS, STEPS, ROUNDS = 3, 5, 4


def find(name: str) -> Any:
    """Return Skerry's object of this name, at the top level or in a room: it may have moved between two commits."""
    rooms = [getattr(skerry, room, None) for room in ("algorithms", "runtimes", "training", "weights", "plan")]
    return next(getattr(where, name) for where in (skerry, *rooms) if where is not None and hasattr(where, name))


class Residual(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.norm(self.up(x))))


def mlp() -> tuple[nn.Module, Any]:
    layers = [nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 18), nn.ReLU(), nn.Dropout(0.1)]
    model = nn.Sequential(*layers, nn.Linear(18, 4))
    return model, skerry.discover(model, torch.randn(8, 12))


def cnn() -> tuple[nn.Module, Any]:
    layers = [nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(36, 15), nn.ReLU(), nn.Linear(15, 4))
    return model, skerry.discover(model, torch.randn(8, 12))


def blocks() -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.Linear(12, 8), nn.Sequential(*(Residual() for _ in range(6))), nn.Linear(8, 4))
    return model, skerry.discover(model, torch.randn(8, 12), blocks=skerry.Blocks("1.*", branch="down"))


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01)


RUNS: dict[str, tuple[str, str, Callable[[Any], torch.optim.Optimizer], dict[str, Any]]] = {
    "ist, all dealt anew": ("mlp", "ist", sgd, {"reshuffle": 1.0}),
    "ist, a part dealt again, a core": ("cnn", "ist", adamw, {"reshuffle": 0.3, "core": 0.3}),
    "ist, capacities, state travels": (
        "mlp", "ist", adamw, {"reshuffle": 1.0, "capacities": (1, 2, 3), "optimizer_state": "travel"},
    ),
    "local_sgd, overlap": ("cnn", "local_sgd", sgd, {"overlap": 2, "optimizer_state": "travel"}),
    "narrow": ("mlp", "narrow", adamw, {}),
    "diloco": ("mlp", "diloco", adamw, {}),
    "resist, state travels": ("blocks", "resist", adamw, {"min_units": 4, "optimizer_state": "travel"}),
    "federated_dropout": ("cnn", "federated_dropout", sgd, {}),
}  # fmt: skip


def digest(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        found.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def run(runtime: Any, name: str, out: str) -> None:
    model_name, method, optimizer, settings = RUNS[name]
    torch.manual_seed(0)
    model, plan = {"mlp": mlp, "cnn": cnn, "blocks": blocks}[model_name]()
    x = torch.randn(240, 12)
    y = (x @ torch.randn(12, 4)).argmax(1)
    result = skerry.train(
        model,
        F.cross_entropy,
        skerry.Shards(x, y, skerry.split(y, WORKERS, "iid", seed=0), batch_size=16, seed=0),
        plan=plan,
        algorithm=find(method)(WORKERS, local_steps=STEPS, **settings),
        optimizer=optimizer,
        num_rounds=ROUNDS,
        schedule=skerry.cosine,
        test=(x, y),
        runtime=runtime,
    )
    result.export(out)


def main() -> None:
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    for name in RUNS:
        for kind in ("serial", "processes"):
            with tempfile.TemporaryDirectory() as out:
                if kind == "serial":
                    run(find("Serial")(), name, out)
                else:
                    skerry.launch(run, WORKERS, name, out)
                print(f"{name}, {kind}: {digest(load_file(Path(out) / 'model.safetensors'))}", flush=True)


if __name__ == "__main__":
    main()
