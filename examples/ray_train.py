"""Train with one process per worker in Ray Train: python examples/ray_train.py (needs: pip install 'ray[train]')

Ray makes the process group, and ``Processes.join`` uses it.
"""

import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

import skerry


def work() -> None:
    """Run in every process, with the same model, seeds and settings."""
    x, y = load_digits(return_X_y=True)  # (1797, 64) and (1797,)
    x, x_test, y, y_test = map(torch.tensor, train_test_split(x.astype("float32") / 16, y, random_state=0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 240), nn.ReLU(), nn.Linear(240, 10))
    with skerry.Processes.join() as runtime:
        result = skerry.train(
            model, F.cross_entropy,
            skerry.Shards(x, y, skerry.split(y, runtime.num_processes, "iid", seed=0), batch_size=32, seed=0),
            plan=skerry.discover(model, x[:8]), algorithm=skerry.ist(runtime.num_processes, local_steps=20),
            optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
            num_rounds=20, schedule=skerry.cosine, test=(x_test, y_test), runtime=runtime,
        )  # fmt: skip
    if runtime.rank == 0:
        print(f"accuracy {result.score.accuracy:.3f}", flush=True)


if __name__ == "__main__":
    TorchTrainer(work, scaling_config=ScalingConfig(num_workers=2), torch_config=TorchConfig("gloo")).fit()
