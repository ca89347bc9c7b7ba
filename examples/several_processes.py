"""Train with one process per worker: python examples/several_processes.py (seconds, no download)

Here ``launch`` starts three processes. On several machines torchrun starts them (docs/machines.md). No process holds
the full model: it is on torch's ``meta`` device, and each process makes only what it needs. The trained model is
written tensor by tensor, to digits/model.safetensors.
"""

import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

import skerry


def work(runtime: skerry.Processes, folder: str) -> None:
    """Run in every process, with the same model, seeds and settings."""
    x, y = load_digits(return_X_y=True)  # (1797, 64) and (1797,)
    x, x_test, y, y_test = map(torch.tensor, train_test_split(x.astype("float32") / 16, y, random_state=0))
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 240), nn.BatchNorm1d(240), nn.ReLU(), nn.Linear(240, 10))
    hidden = skerry.plan.Out("hidden")  # a plan written by hand; discover finds it, too
    plan = skerry.Plan.from_rules(model, {"0": hidden, "1": hidden, "3": skerry.plan.In("hidden")})
    # A process reads only its worker's part. Where each machine has its own data, pass an object with `num_workers`,
    # `batches` and `sample` (skerry.training.Data) that reads what is there.
    data = skerry.Shards(x, y, skerry.split(y, runtime.num_processes, "iid", seed=0), batch_size=32, seed=0)
    result = skerry.train(
        model, F.cross_entropy, data,
        plan=plan, algorithm=skerry.ist(runtime.num_processes, local_steps=20),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        num_rounds=10, schedule=skerry.cosine, test=(x_test, y_test), runtime=runtime,
        start=lambda model: skerry.weights.FromInitializer(model, seed=0),
    )  # fmt: skip
    result.export(Path(folder))  # every process must call it; the first one writes
    if runtime.rank == 0:
        assert result.score is not None
        print(f"accuracy {result.score.accuracy:.3f}")


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun --standalone --nproc-per-node 3 examples/several_processes.py
        with skerry.Processes.join() as joined:
            work(joined, "digits")
    else:
        skerry.launch(work, 3, "digits")
