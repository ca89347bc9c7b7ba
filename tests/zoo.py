"""Small models with their plans, and data, that many tests share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from overlapping import Overlapping
from torch import Tensor, nn
from torch.nn import functional as F

from skerry import Blocks, Plan, Shards, discover, ensemble, ist, narrow, relay, split
from skerry.algorithm import Algorithm
from skerry.algorithms import diloco, federated_dropout, fedrolex, heterofl, local_sgd, resist, single
from skerry.experiments.models.mlp import MLP
from skerry.experiments.recipes.image_mlp import mlp_rules
from skerry.plan import In, Out
from skerry.trained import Apart
from skerry.training.worker import OptimizerFn


class TiedAutoencoder(nn.Module):
    """Two layers that share one weight: w reads h and makes h, on both sides of a ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.left = nn.Linear(width, 5)
        self.right = nn.Linear(width, 5)
        self.right.weight = self.left.weight
        self.bias = nn.Parameter(torch.randn(5))
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.left(h) + self.drop(self.right(h.square())) + self.bias


class Transposed(nn.Module):
    """Transposed convolution, embedding and layer norm over a dim that is not dealt out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(6, 8)
        self.up = nn.Conv1d(8, 7, 3, padding=1)
        self.act = nn.Sigmoid()
        self.bn = nn.BatchNorm1d(7)
        self.down = nn.ConvTranspose1d(7, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.mix(self.embed(x))).transpose(1, 2)
        return self.down(self.bn(self.act(self.up(h))))


class CNN(nn.Module):
    """3x3 convolutions with batch norm, ReLU and 2x2 max pooling, then a dense layer; images (B, C, size, size)."""

    def __init__(
        self, channels: Sequence[int], *, image_size: int, hidden: int, classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        side = image_size // 2 ** len(pairs)
        self.hidden = nn.Linear(channels[-1] * side * side, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, size, size) to (B, classes)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        logits: Tensor = self.out(self.dropout(F.relu(self.hidden(x.flatten(1)))))
        return logits


@dataclass(frozen=True)
class Case:
    """A model, its plan and an input."""

    name: str
    build: Callable[[], tuple[nn.Module, Plan, Tensor]]


def mlp(norm: bool = True, dropout: float = 0.0, hidden: tuple[int, ...] = (13, 10)) -> tuple[nn.Module, Plan, Tensor]:
    model = MLP([9, *hidden, 4], norm=norm, dropout=dropout)
    rules = mlp_rules(len(hidden))
    if not norm:
        rules = {name: rule for name, rule in rules.items() if not name.startswith("norms")}
    return model, Plan.from_rules(model, rules), torch.randn(16, 9)


def cnn() -> tuple[nn.Module, Plan, Tensor]:
    model = CNN([2, 6, 7], image_size=8, hidden=11, classes=3)
    rules = {
        "convs.0": Out("c0"),
        "norms.0": Out("c0"),
        "convs.1": (In("c0"), Out("c1")),
        "norms.1": Out("c1"),
        "hidden": (In("c1"), Out("h")),
        "out": In("h"),
    }
    return model, Plan.from_rules(model, rules), torch.randn(12, 2, 8, 8)


def tied() -> tuple[nn.Module, Plan, Tensor]:
    model = TiedAutoencoder(9)
    plan = Plan.from_rules(model, {"first": Out("h"), "left": In("h"), "right": In("h")})
    return model, plan, torch.randn(7, 6)


def transposed() -> tuple[nn.Module, Plan, Tensor]:
    model = Transposed()
    rules = {"embed": Out("e"), "mix": In("e"), "up": Out("c"), "bn": Out("c"), "down": In("c")}
    return model, Plan.from_rules(model, rules), torch.randint(0, 11, (5, 6))


CASES = [
    Case("mlp", mlp),
    Case("mlp-plain", lambda: mlp(norm=False)),
    Case("mlp-dropout", lambda: mlp(dropout=0.3)),
    Case("cnn", cnn),
    Case("tied", tied),
    Case("transposed", transposed),
    Case("blocks", lambda: blocks()),
]


def blobs(
    workers: int, *, samples: int = 240, features: int = 9, classes: int = 4, batch: int = 16, seed: int = 0
) -> Shards:
    """Points around class centres, dealt to workers."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (samples,), generator=rng)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    x = centres[y] + torch.randn(samples, features, generator=rng)
    return Shards(x, y, split(y, workers, "iid", seed), batch_size=batch, seed=seed)


def images(workers: int) -> Shards:
    """Noise images whose first channel tells the class."""
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(120, 2, 8, 8, generator=rng), torch.randint(0, 3, (120,), generator=rng)
    x[:, 0] += y[:, None, None]
    return Shards(x, y, split(y, workers, "iid", 0), batch_size=12, seed=0)


@dataclass(frozen=True)
class Method:
    """An algorithm and an optimizer for the shared suite: every algorithm, on every model, in every runtime."""

    algorithm: Algorithm
    optimizer: OptimizerFn


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), 1e-2)


METHODS = {
    "ist": Method(ist(3, local_steps=4), sgd),
    "relay": Method(relay(3, local_steps=4), sgd),
    "relay-resting": Method(relay(3, local_steps=4, nets=5), sgd),
    "ensemble-resting": Method(ensemble(3, local_steps=4, nets=5, optimizer_state="reset"), sgd),
    "relay-travel": Method(relay(3, local_steps=4, optimizer_state="travel"), adamw),
    "ist-slow-core": Method(ist(3, local_steps=4, reshuffle=0.3, core=0.3), adamw),
    "ist-uneven-travel": Method(ist(3, local_steps=4, capacities=(1, 2, 3), optimizer_state="travel"), adamw),
    "overlapping": Method(
        Algorithm(name="overlapping", partition=Overlapping(3, 2), local_steps=4, optimizer_state="travel"), sgd
    ),
    "local_sgd": Method(local_sgd(3, local_steps=4), sgd),
    "ist-core-overlap-travel": Method(ist(3, local_steps=4, core=0.4, overlap=2, optimizer_state="travel"), adamw),
    "local_sgd-overlap-travel": Method(local_sgd(3, local_steps=4, overlap=4, optimizer_state="travel"), sgd),
    "local_sgd-travel": Method(local_sgd(3, local_steps=4, optimizer_state="travel"), adamw),
    "narrow": Method(narrow(3, local_steps=4), sgd),
    "single": Method(single(local_steps=4), adamw),
    "diloco": Method(diloco(3, local_steps=4), adamw),
    "local_sgd-stay": Method(local_sgd(3, local_steps=4, optimizer_state="stay"), sgd),
    "ensemble": Method(ensemble(3, local_steps=4), adamw),
    "federated_dropout": Method(federated_dropout(3, local_steps=4), sgd),
    "fedrolex": Method(fedrolex(3, local_steps=4, step=2, fractions=(0.3, 0.3, 0.7), optimizer_state="travel"), adamw),
    "heterofl": Method(heterofl(3, local_steps=4, fractions=(0.8, 0.4, 0.2)), sgd),
    "resist": Method(resist(3, local_steps=4, min_units=5, optimizer_state="travel"), sgd),
}


def fits(method: str, model_name: str) -> bool:
    """Blocks have no homes, which units without a holder need, and subnets that share them are not independent nets."""
    algorithm = METHODS[method].algorithm
    return model_name != "blocks" or (algorithm.partition.covers and not isinstance(algorithm.trains, Apart))


class Residual(nn.Module):
    """A block that adds to what it gets."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.norm(self.up(x))))


def blocks() -> tuple[nn.Module, Plan, Tensor]:
    model, x = _of_blocks()
    return model, _plan_of_blocks(), x


def _of_blocks() -> tuple[nn.Module, Tensor]:
    body = nn.Sequential(*(Residual(8, 6 + k) for k in range(6)))
    return nn.Sequential(nn.Linear(9, 8), body, nn.Linear(8, 4)), torch.randn(16, 9)


@cache
def _plan_of_blocks() -> Plan:
    """Found once: values are no part of it."""
    with torch.random.fork_rng(devices=[]):
        return discover(*_of_blocks(), blocks=Blocks("1.*", branch="down"))


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, Plan, Tensor]], Callable[[int], Shards]]] = {
    "mlp": (lambda: mlp(dropout=0.1), blobs),
    "cnn": (cnn, images),
    "blocks": (blocks, blobs),
}
