"""The same with one process a worker: python examples/own_processes.py

On machines of their own torchrun starts them (docs/machines.md); here ``launch`` starts three. None of them ever holds
the full model: it is on torch's ``meta`` device, each process makes just what it holds, and the trained model is
written tensor by tensor, to digits/model.safetensors.
"""

import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import skerry


def load() -> tuple[Tensor, Tensor]:
    """Handwritten digits: x (1797, 64) float32, y (1797,) int64."""
    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


def work(runtime: skerry.Processes, path: str) -> None:
    """Run in every process, with the same model, seeds and settings."""
    x, y = load()
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 240), nn.BatchNorm1d(240), nn.ReLU(), nn.Linear(240, 10))
    plan = skerry.Plan.from_rules(
        model, {"0": skerry.plan.Out("hidden"), "1": skerry.plan.Out("hidden"), "3": skerry.plan.In("hidden")}
    )
    # Only the process's own part is ever read. Where each machine has its own data, give an object with `num_workers`,
    # `batches` and `sample` (skerry.training.Data) that reads what is there.
    data = skerry.Shards(x, y, skerry.split(y, runtime.num_processes, "iid", seed=0), batch_size=32, seed=0)
    result = skerry.train(
        model, F.cross_entropy, data,
        plan=plan, algorithm=skerry.ist(runtime.num_processes, local_steps=20),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        num_rounds=10, schedule=skerry.cosine, test=(x, y), runtime=runtime,
        start=lambda model: skerry.weights.FromInitializer(model, seed=0),
    )  # fmt: skip
    result.export(Path(path))  # every process must call it; the first one writes
    if runtime.rank == 0:
        assert result.score is not None
        print(f"accuracy on the training digits {result.score.accuracy:.3f}")


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun --standalone --nproc-per-node 3 examples/own_processes.py
        with skerry.Processes.join() as joined:
            work(joined, "digits")
    else:
        skerry.launch(work, 3, "digits")
