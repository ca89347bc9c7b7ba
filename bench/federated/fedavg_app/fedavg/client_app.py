"""A site: gets the whole net, takes local steps, sends it back."""

import os
import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn import functional as F

from fedavg.net import batches, net

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return the net after local steps."""
    torch.set_num_threads(1)
    config = context.run_config
    given = message.content["config"]
    made = net(config["folder"])
    made.load_state_dict(message.content["arrays"].to_torch_state_dict())
    mine = batches(config["folder"], int(context.node_config["site"]), int(given["server-round"]) - 1)
    optimizer = torch.optim.SGD(made.parameters(), lr=config["lr"])
    began, before_s, loss = time.perf_counter(), _age_s(), torch.zeros(())
    for x, y in mine:
        optimizer.zero_grad()
        loss = F.cross_entropy(made(x), y)
        loss.backward()
        optimizer.step()
    local_s = time.perf_counter() - began
    metrics = {"num-examples": sum(len(y) for _, y in mine), "local_s": local_s, "before_s": before_s}
    content = RecordDict({"arrays": ArrayRecord(made.state_dict()), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


def _age_s() -> float:
    """Return for how long this process has been there."""
    with open("/proc/self/stat") as file:
        began = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began
