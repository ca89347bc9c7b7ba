"""Your own training loop over Skerry's rounds: python examples/own_loop.py (seconds, no download)

What ``skerry.train`` does is written out here: the batches, the loss, the evaluation are yours, and so is whatever you
put between them. With ``runtime=`` the same loop runs with one process a worker (examples/own_processes.py).
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import skerry


def main() -> skerry.training.Score:
    """Train a wide net on handwritten digits as four narrow ones."""
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16  # (1797, 64)
    y = torch.tensor(digits.target)[order]  # (1797,) int64
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
    parts = skerry.split(y[:1400], 4, "iid", seed=0)

    with skerry.Session(
        model, plan=skerry.discover(model, x[:8]), algorithm=skerry.ist(workers=4, local_steps=20),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        num_rounds=30, schedule=skerry.cosine, example_inputs=x[:8],
        loss_fn=F.cross_entropy, test=(x[1400:], y[1400:]),  # to score, and to watch what the subnets say
    ) as session:  # fmt: skip
        for round in session.rounds():
            for worker in round.workers:  # those that run in this process: here all four
                mine = parts[worker.number]
                for _ in range(worker.num_steps):
                    batch = mine[torch.randint(len(mine), (32,))]  # the random state is the worker's own
                    logits = worker.subnet(x[batch])  # a real narrow net, with a quarter of the hidden units
                    worker.step(F.cross_entropy(logits, y[batch]), y[batch])  # backward, learning rate, optimizer
            # Here the pieces have been exchanged. What round.diagnosis means: docs/your-run.md.
            if round.number % 10 == 9:
                disagree = round.diagnosis.dispersion
                print(f"round {round.number}: training loss {round.train_loss:.3f}, subnets disagree by {disagree:.2f}")
        full = session.full(x[:1400])  # calibrated: scaled, and with batch-norm statistics of these inputs
        score = session.score(full)
    print(f"accuracy {score.accuracy:.3f}")  # of full.whole(), an ordinary module
    return score


if __name__ == "__main__":
    main()
