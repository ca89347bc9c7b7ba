"""Train with one process per worker, started by a launcher (seconds, no download):

torchrun --standalone --nproc-per-node 2 examples/torchrun.py

``accelerate launch`` starts it in the same way, SLURM by examples/slurm.sh, and Ray Train has examples/ray_train.py.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

import skerry


def train(runtime: skerry.Processes) -> None:
    """Run in every process, with the same model, seeds and settings."""
    x, y = load_digits(return_X_y=True)  # (1797, 64) and (1797,)
    x, x_test, y, y_test = map(torch.tensor, train_test_split(x.astype("float32") / 16, y, random_state=0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 240), nn.ReLU(), nn.Linear(240, 10))
    result = skerry.train(
        model, F.cross_entropy,
        skerry.Shards(x, y, skerry.split(y, runtime.num_processes, "iid", seed=0), batch_size=32, seed=0),
        plan=skerry.discover(model, x[:8]), algorithm=skerry.ist(runtime.num_processes, local_steps=20),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        num_rounds=10, schedule=skerry.cosine, test=(x_test, y_test), runtime=runtime,
    )  # fmt: skip
    result.export("digits", shard_bytes=None)  # every process must call it; the first one writes
    if runtime.rank == 0:
        assert result.score is not None
        print(f"accuracy {result.score.accuracy:.3f}")


if __name__ == "__main__":
    train(skerry.Processes.join())
