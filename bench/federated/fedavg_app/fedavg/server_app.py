"""The server: Flower's FedAvg, which says when each round was over, and how much memory it took."""

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import save_file

from fedavg.net import net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and write a line per round and the weights."""
    config = context.run_config
    folder, before = Path(config["folder"]), _status("VmRSS")
    made = net(config["folder"])
    with (folder / "metrics.jsonl").open("w", buffering=1) as file:

        def told(replies: list[RecordDict], key: str) -> MetricRecord:
            own = [reply["metrics"] for reply in replies]
            line = {name: [each[name] for each in own] for name in ("local_s", "before_s")}
            file.write(json.dumps({"t": time.time(), **line}) + "\n")
            return MetricRecord({})

        sites = config["sites"]
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites, train_metrics_aggr_fn=told
        )
        result = strategy.start(grid, ArrayRecord(made.state_dict()), num_rounds=config["num-server-rounds"])
    save_file(result.arrays.to_torch_state_dict(), folder / "model.safetensors")
    (folder / "memory.json").write_text(json.dumps({"growth": _status("VmHWM") - before}))


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))
