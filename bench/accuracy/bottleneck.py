"""What a narrow hidden layer costs where each worker gets a part of it, and which remedies help.

    python bench/accuracy/bottleneck.py        # three minutes on one core

An autoencoder 64-128-128-8-128-128-64 on 3,000 samples, sigmoid(z A) of 8 normal factors z. Of the 8 units in
the middle each of 4 workers gets 2. Printed: the squared error on 600 held-out samples, for seeds 0,
1, 2 of the full model.
"""

import warnings

import torch
from torch import nn
from torch.nn import functional as F

import skerry
from skerry.algorithm import Algorithm
from skerry.algorithms import single

MIDDLE = "4"  # the axis of the layer of 8 units
STEPS = 20


def autoencoder() -> nn.Module:
    """Return the model."""
    layers: list[nn.Module] = []
    for before, width in ((64, 128), (128, 128), (128, 8), (8, 128), (128, 128)):
        layers += [nn.Linear(before, width), nn.Identity() if width == 8 else nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(128, 64), nn.Sigmoid())


def error(algorithm: Algorithm, x: torch.Tensor, test: torch.Tensor, *, whole: bool, seed: int) -> float:
    """Return the squared error after training; with ``whole`` the middle is not dealt out."""
    torch.manual_seed(seed)
    model = autoencoder()
    plan = skerry.discover(model, x[:8])
    n = algorithm.partition.num_workers
    parts = skerry.split(torch.zeros(len(x), dtype=torch.int64), n, "iid", seed=0)
    result = skerry.train(
        model,
        F.mse_loss,
        skerry.Shards(x, x, parts, batch_size=32, seed=0),
        plan=plan.without(MIDDLE) if whole else plan,
        algorithm=algorithm,
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
        num_rounds=30,
        schedule=skerry.cosine,
        seed=seed,
        test=(test, test),
    )
    assert result.score is not None
    return result.score.loss


def main() -> None:
    """Print a row per method."""
    torch.manual_seed(0)
    x = torch.sigmoid(torch.randn(3000, 8) @ torch.randn(8, 64))
    x, test = x[:2400], x[2400:]
    print(f"the mean of the training samples: {F.mse_loss(x.mean(0).expand_as(test), test):.4f}")
    rows: list[tuple[str, Algorithm, bool]] = [
        ("ist", skerry.ist(4, local_steps=STEPS), False),
        ("ist, middle whole", skerry.ist(4, local_steps=STEPS), True),
        ("ist, 2 workers", skerry.ist(2, local_steps=STEPS), False),
        ("ist, core .5", skerry.ist(4, local_steps=STEPS, core=0.5), False),
        ("relay", skerry.relay(4, local_steps=STEPS), False),
        ("narrow", skerry.narrow(4, local_steps=STEPS), False),
        ("narrow, middle whole", skerry.narrow(4, local_steps=STEPS), True),
        ("single", single(local_steps=STEPS), False),
    ]
    for name, algorithm, whole in rows:
        print(
            f"{name:22}", *(f"{error(algorithm, x, test, whole=whole, seed=seed):.4f}" for seed in range(3)), flush=True
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main()
