"""Write the training loop yourself: python examples/training_loop.py (seconds, no download)

This is what ``skerry.train`` does, written out. The batches, the loss and the evaluation are yours, and so is anything
you put between them. With ``runtime=`` the same loop runs with one process per worker (several_processes.py).
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

import skerry


def main() -> None:
    """Train a wide net on handwritten digits as four narrow ones."""
    x, y = load_digits(return_X_y=True)  # (1797, 64) and (1797,)
    x, x_test, y, y_test = map(torch.tensor, train_test_split(x.astype("float32") / 16, y, random_state=0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
    parts = skerry.split(y, 4, "iid", seed=0)  # for each worker, the indices of its samples

    with skerry.Session(
        model, plan=skerry.discover(model, x[:8]), algorithm=skerry.ist(workers=4, local_steps=20),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        num_rounds=15, schedule=skerry.cosine, example_inputs=x[:8],
        loss_fn=F.cross_entropy, test=(x_test, y_test),
    ) as session:  # fmt: skip
        for round in session.rounds():
            for worker in round.workers:  # those that run in this process: here all four
                mine = parts[worker.number]
                for _ in range(worker.num_steps):
                    batch = mine[torch.randint(len(mine), (32,))]  # each worker has a random state of its own
                    logits = worker.subnet(x[batch])  # a real narrow net, with a quarter of the hidden units
                    worker.step(F.cross_entropy(logits, y[batch]), y[batch])  # backward, learning rate, optimizer
            # Here the pieces have been exchanged. round.diagnosis says how training goes: docs/your-run.md.
            if round.number % 5 == 4:
                print(f"round {round.number}: training loss {round.train_loss:.3f}")
        full = session.full(x)  # the full model, its scales and batch-norm statistics calibrated on these inputs
        print(f"accuracy {session.score(full).accuracy:.3f}")  # full.whole() returns it as an ordinary module


if __name__ == "__main__":
    main()
