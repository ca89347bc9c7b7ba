"""Models that end badly with 'ist', what is said of them before training, and what helps.

    python bench/accuracy/hard_models.py [NAME ...]        # all five: twelve minutes on one core

- autoencoder: 64-128-128-8-128-128-64 on sigmoid(z A) of 8 normal factors z. Of the 8 units in the middle each of 4
  workers gets 2. The figure is the squared error on 600 held-out samples.
- sound: six pitches in noise; a residual stream of 4 groups with group norm, then a softmax over time that reads all
  channels, and weighted means and deviations. Each of 4 workers has one group.
- stream: the same without the softmax and without deviations.
- gates: convolutions with squeeze-and-excitation, whose gates multiply dealt channels, on the same sounds.
- capacities: an MLP 32-64-64-64-6 on the classes of a random net; one worker has four times the units of the others.

The first table scores one run of 'ist' three times: with every read scaled by 1/n, as calibration did until 2026-11-27;
with the share of a unit beside another one (``partitions/share.py``); and with ``skerry.merge.fit_scale`` on 512
training samples. The second table has the remedies. Columns are seeds 0, 1, 2; accuracy (loss), or the squared error.
"""

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry.algorithm import Algorithm
from skerry.algorithms import single
from skerry.merge import fit_scale
from skerry.merge.calibrate import estimate_batch_norm_
from skerry.partitions import Share
from skerry.training import Score, evaluate
from skerry.training.train import CALIBRATION_SAMPLES, Result

STEPS = 20
SEEDS = range(3)

Rows = tuple[Tensor, Tensor]


def autoencoder() -> nn.Module:
    """Return the model; its axis in the middle is "4"."""
    layers: list[nn.Module] = []
    for before, width in ((64, 128), (128, 128), (128, 8), (8, 128), (128, 128)):
        layers += [nn.Linear(before, width), nn.Identity() if width == 8 else nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(128, 64), nn.Sigmoid())


class Sound(nn.Module):
    """Residual convolutions, then weighted means and deviations over time, with weights from all channels.

    If ``plain``, means over time instead.
    """

    def __init__(self, channels: int = 24, classes: int = 6, *, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        self.front = nn.Conv1d(1, channels, 64, 16, 24)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, channels), nn.ELU(), nn.Conv1d(channels, channels, 3, padding=d, dilation=d))
            for d in (1, 2, 4, 8)
        )
        self.weights = nn.Identity() if plain else nn.Conv1d(channels, 1, 1)
        self.head = nn.Linear(channels if plain else 2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of sounds (B, 1, T)."""
        x = self.front(x)
        for block in self.blocks:
            x = x + block(x)
        if self.plain:
            return self.head(x.mean(-1))
        weights = self.weights(x).softmax(-1)
        mean = (x * weights).sum(-1)
        deviation = ((x - mean[..., None]).square() * weights).sum(-1).clamp(min=1e-5).sqrt()
        return self.head(torch.cat([mean, deviation], 1))


class Gates(nn.Module):
    """Convolutions whose channels are multiplied by gates that read all of them."""

    def __init__(self, channels: int = 32, classes: int = 6) -> None:
        super().__init__()
        widths = (1, channels, channels)
        self.convs = nn.ModuleList(nn.Conv1d(width, channels, 5, padding=2) for width in widths)
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in widths)
        self.gates = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, channels // 2), nn.ReLU(), nn.Linear(channels // 2, channels), nn.Sigmoid()
            )
            for _ in widths
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of sounds (B, 1, T)."""
        x = F.avg_pool1d(x, 2)
        for conv, norm, gate in zip(self.convs, self.norms, self.gates, strict=True):
            x = F.relu(norm(conv(x)))
            x = F.avg_pool1d(x * gate(x.mean(-1))[..., None], 2)
        return self.head(x.mean(-1))


def perceptron() -> nn.Module:
    """Return an MLP 32-64-64-64-6."""
    layers = [part for before in (32, 64, 64) for part in (nn.Linear(before, 64), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, 6))


def factors() -> tuple[Tensor, Tensor]:
    """Return 3,000 samples, which are their own targets."""
    x = torch.sigmoid(torch.randn(3000, 8) @ torch.randn(8, 64))
    return x, x


def sounds() -> tuple[Tensor, Tensor]:
    """Return 2,000 sounds of 1,024 samples, and which of six pitches each has."""
    y = torch.randint(6, (2000,))
    phase = 2 * math.pi * ((20 + 15 * y[:, None]) * torch.arange(1024) / 1024 + torch.rand(2000, 1))
    return (torch.sin(phase) + torch.randn(2000, 1024))[:, None], y


def classes() -> tuple[Tensor, Tensor]:
    """Return 5,000 samples of 32 features, and the class that a random net gives each."""
    x, first, second = torch.randn(5000, 32), torch.randn(32, 64) / 2, torch.randn(64, 6)
    return x, (torch.tanh(x @ first) @ second).argmax(1)


@dataclass(frozen=True)
class Case:
    """A model with its data, loss and length; ``whole``: the axis whose dealing is the trouble."""

    make: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    rounds: int
    whole: str
    capacities: tuple[float, ...] | None = None


CASES = {
    "autoencoder": Case(autoencoder, factors, F.mse_loss, 30, "4"),
    "sound": Case(Sound, sounds, F.cross_entropy, 12, "front"),
    "stream": Case(lambda: Sound(plain=True), sounds, F.cross_entropy, 12, "front"),
    "gates": Case(Gates, sounds, F.cross_entropy, 15, "gates.*"),
    "capacities": Case(perceptron, classes, F.cross_entropy, 40, "2", (4.0, 1.0, 1.0, 1.0)),
}


def trained(case: Case, algorithm: Algorithm, seed: int, *, whole: bool = False) -> tuple[Result, Rows, Rows]:
    """Train on four fifths of the data; return the result, and training and test samples."""
    torch.manual_seed(0)
    x, y = case.data()
    num = len(x) * 4 // 5
    torch.manual_seed(seed)
    model = case.make()
    plan = skerry.discover(model, x[:8])
    n = algorithm.partition.num_workers
    parts = skerry.split(torch.zeros(num, dtype=torch.int64), n, "iid", seed=0)
    result = skerry.train(
        model,
        case.loss_fn,
        skerry.Shards(x[:num], y[:num], parts, batch_size=32, seed=0),
        plan=plan.without(case.whole) if whole else plan,
        algorithm=algorithm,
        optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=3e-3),
        num_rounds=case.rounds,
        schedule=skerry.cosine,
        seed=seed,
        test=(x[num:], y[num:]),
    )
    return result, (x[:num], y[:num]), (x[num:], y[num:])


def by_scale(case: Case, seed: int) -> list[Score]:
    """Return the scores of one run of ``ist`` with the scale 1/n, that of calibration, and a fitted one."""
    ist = skerry.ist(4, local_steps=STEPS, capacities=case.capacities)
    result, (x, y), test = trained(case, ist, seed)
    setup = result.session.setup
    alone = setup.store.full(Share.independent(setup.share(case.rounds).alone)).module
    estimate_batch_norm_(alone, lambda m: m(x[:CALIBRATION_SAMPLES]))
    fitted = fit_scale(result.model, result.plan, case.loss_fn, [(x[:512], y[:512])])
    return [evaluate(model, case.loss_fn, test) for model in (alone, result.model, fitted)]


def shown(scores: Sequence[Score]) -> str:
    """Return the scores of the seeds in words."""
    return "  ".join(f"{s.loss:.4f}" if math.isnan(s.accuracy) else f"{s.accuracy:.3f} ({s.loss:.4f})" for s in scores)


def main() -> None:
    """Print both tables."""
    for name in sys.argv[1:] or CASES:
        case = CASES[name]
        x = case.data()[0]
        told = skerry.discover(case.make(), x[:8]).warnings(workers=4)
        print(f"{name}; told before training: {', '.join(text.split(':')[0] for text in told) or 'nothing'}")
        scores = zip(*(by_scale(case, seed) for seed in SEEDS), strict=True)
        for how, each in zip(("ist, scaled by 1/n", "ist, calibrated", "ist, fitted scale"), scores, strict=True):
            print(f"  {how:22}", shown(each), flush=True)
        remedies: list[tuple[str, Algorithm, bool]] = [
            ("ist, axis whole", skerry.ist(4, local_steps=STEPS, capacities=case.capacities), True),
            ("ist, 2 workers", skerry.ist(2, local_steps=STEPS), False),
            ("ist, core .5", skerry.ist(4, local_steps=STEPS, capacities=case.capacities, core=0.5), False),
            ("relay", skerry.relay(4, local_steps=STEPS), False),
            ("narrow", skerry.narrow(4, local_steps=STEPS), False),
            ("narrow, axis whole", skerry.narrow(4, local_steps=STEPS), True),
            ("single", single(local_steps=STEPS), False),
        ]
        for how, algorithm, whole in remedies:
            try:
                found = [trained(case, algorithm, seed, whole=whole)[0].score for seed in SEEDS]
            except ValueError as error:
                print(f"  {how:22} refused: {error}"[:140])
                continue
            print(f"  {how:22}", shown([score for score in found if score is not None]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main()
