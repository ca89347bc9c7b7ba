"""Two models that end badly with the default method, and which remedies help.

    python bench/accuracy/hard_models.py        # six minutes on one core

- An autoencoder 64-128-128-8-128-128-64 on sigmoid(z A) of 8 normal factors z. Of the 8 units in the middle each of 4
  workers gets 2. Printed: the squared error on 600 held-out samples.
- A network on sound of six pitches in noise: residual blocks with group norm, then a softmax over time that reads all
  channels, and weighted means and deviations. Scaling what is read by 1/n is not enough there. Printed: accuracy and
  loss on 400 held-out samples.

Columns are seeds 0, 1, 2 of the full model.
"""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry.algorithm import Algorithm
from skerry.algorithms import single
from skerry.training import Score

STEPS = 20
SEEDS = range(3)


def autoencoder() -> nn.Module:
    """Return the model; its axis in the middle is "4"."""
    layers: list[nn.Module] = []
    for before, width in ((64, 128), (128, 128), (128, 8), (8, 128), (128, 128)):
        layers += [nn.Linear(before, width), nn.Identity() if width == 8 else nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(128, 64), nn.Sigmoid())


class Sound(nn.Module):
    """Residual convolutions, then weighted means and deviations over time, with weights from all channels."""

    def __init__(self, channels: int = 24, classes: int = 6) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, channels, 64, 16, 24)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, channels), nn.ELU(), nn.Conv1d(channels, channels, 3, padding=d, dilation=d))
            for d in (1, 2, 4, 8)
        )
        self.weights = nn.Conv1d(channels, 1, 1)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of sounds (B, 1, T)."""
        x = self.front(x)
        for block in self.blocks:
            x = x + block(x)
        weights = self.weights(x).softmax(-1)
        mean = (x * weights).sum(-1)
        deviation = ((x - mean[..., None]).square() * weights).sum(-1).clamp(min=1e-5).sqrt()
        return self.head(torch.cat([mean, deviation], 1))


def factors() -> tuple[Tensor, Tensor]:
    """Return 3,000 samples, which are their own targets."""
    x = torch.sigmoid(torch.randn(3000, 8) @ torch.randn(8, 64))
    return x, x


def sounds() -> tuple[Tensor, Tensor]:
    """Return 2,000 sounds of 1,024 samples, and which of six pitches each has."""
    y = torch.randint(6, (2000,))
    phase = 2 * math.pi * ((20 + 15 * y[:, None]) * torch.arange(1024) / 1024 + torch.rand(2000, 1))
    return (torch.sin(phase) + torch.randn(2000, 1024))[:, None], y


def score(
    algorithm: Algorithm,
    make: Callable[[], nn.Module],
    data: tuple[Tensor, Tensor],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    whole: str,
    rounds: int,
    seed: int,
) -> Score:
    """Return the score after training on four fifths of the data; the axis ``whole`` is not dealt out."""
    torch.manual_seed(seed)
    model, (x, y), num = make(), data, len(data[0]) * 4 // 5
    plan = skerry.discover(model, x[:8])
    n = algorithm.partition.num_workers
    parts = skerry.split(torch.zeros(num, dtype=torch.int64), n, "iid", seed=0)
    result = skerry.train(
        model,
        loss_fn,
        skerry.Shards(x[:num], y[:num], parts, batch_size=32, seed=0),
        plan=plan.without(whole) if whole else plan,
        algorithm=algorithm,
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
        num_rounds=rounds,
        schedule=skerry.cosine,
        seed=seed,
        test=(x[num:], y[num:]),
    )
    assert result.score is not None
    return result.score


def main() -> None:
    """Print a row per method and model."""
    ist, relay = skerry.ist(4, local_steps=STEPS), skerry.relay(4, local_steps=STEPS)
    narrow, ensemble = skerry.narrow(4, local_steps=STEPS), skerry.ensemble(4, local_steps=STEPS)
    alone = single(local_steps=STEPS)
    rows: list[tuple[str, Algorithm, str]] = [
        ("ist", ist, ""),
        ("ist, middle whole", ist, "4"),
        ("ist, 2 workers", skerry.ist(2, local_steps=STEPS), ""),
        ("ist, core .5", skerry.ist(4, local_steps=STEPS, core=0.5), ""),
        ("relay", relay, ""),
        ("narrow", narrow, ""),
        ("narrow, middle whole", narrow, "4"),
        ("single", alone, ""),
    ]
    torch.manual_seed(0)
    data = factors()
    train, test = data[0].split([2400, 600])
    print(f"autoencoder, squared error (of the training samples' mean: {(train.mean(0) - test).square().mean():.4f})")
    for name, algorithm, whole in rows:
        found = [score(algorithm, autoencoder, data, F.mse_loss, whole=whole, rounds=30, seed=s) for s in SEEDS]
        print(f"{name:22}", *(f"{each.loss:.4f}" for each in found), flush=True)
    torch.manual_seed(0)
    data = sounds()
    print("sound, accuracy (loss)")
    named = {"ist": ist, "relay": relay, "ensemble": ensemble, "narrow": narrow, "single": alone}
    for name, algorithm in named.items():
        found = [score(algorithm, Sound, data, F.cross_entropy, whole="", rounds=12, seed=s) for s in SEEDS]
        print(f"{name:22}", *(f"{each.accuracy:.4f} ({each.loss:.4f})" for each in found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main()
