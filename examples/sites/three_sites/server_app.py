"""The server: it deals, aggregates and tests, and has no data of the sites."""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch.nn import functional as F

import skerry
from skerry.federated import Federated, OnSites
from three_sites.task import BATCH_SIZE, patients, settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train on as many sites as the run names; it ends if one is away for ten minutes."""
    config = context.run_config
    example = torch.zeros(BATCH_SIZE, 2), torch.zeros(BATCH_SIZE, dtype=torch.int64)
    result = skerry.train(
        loss_fn=F.cross_entropy, data=OnSites(config["sites"], example),
        runtime=Federated(grid, deadline_s=config["deadline-s"], at_least=config["sites"], poll_s=1.0),
        test=patients(site=99), callbacks=[skerry.callbacks.Progress()], **settings(config),
    )  # fmt: skip
    assert result.score is not None
    print(f"accuracy {result.score.accuracy:.4f}", flush=True)
    if config["out"]:
        torch.save(result.model.state_dict(), config["out"])
