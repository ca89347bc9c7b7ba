"""Narrow language models with a trunk in common: embeddings and first blocks are averaged often, the rest is a relay.

    SKERRY_DATA=... python bench/accuracy/shared_trunk.py --rate .016 --length .33 --trunk 1
    SKERRY_DATA=... python bench/accuracy/shared_trunk.py --rate .016 --length .33 --trunk none     # a relay, beside it

Each of 4 workers trains a net as narrow as the nets of ``relay`` in ``gpt-shakespeare``, for as many steps. Every 20
steps the trunks of all nets are averaged. After each of 8 parts of the run, nets move on to the next worker; the
optimizer's state goes with a net. The result is the mean of the nets' logits, as a relay's.

``--trunk N``: embeddings and N of the 2 blocks; ``none``: nothing is averaged.
"""

import argparse
import json
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry.experiments.models.gpt import GPT
from skerry.experiments.recipes import find_recipe
from skerry.experiments.runs.execute import configured, make_optimizer

WORKERS, EVERY, VISITS, STEPS = 4, 20, 8, 1500
NARROW = {"layers": 2, "width": 64, "heads": 1, "head_size": 16, "hidden": 64}


class Training:
    """Nets, their optimizers, and a learning rate that goes down over ``steps``."""

    def __init__(self, rate: float, length: float, seed: int, blocks: int | None) -> None:
        built = find_recipe("gpt-shakespeare")
        self.config = configured(built, "narrow", {"optimizer.lr": rate, "seed": seed})
        task = built.task(self.config)
        (self.x, self.y), self.test = task.train, task.test
        torch.manual_seed(seed)
        self.nets = [GPT(task.sizes["vocabulary"], task.sizes["block"], **NARROW) for _ in range(WORKERS)]
        self.optimizers = [make_optimizer(self.config)(net) for net in self.nets]
        self.rate, self.steps = rate, round(STEPS * length)
        self.trunk = [] if blocks is None else [n for n, _ in self.nets[0].named_parameters() if in_trunk(n, blocks)]
        self.parts = skerry.split(self.y[:, 0], WORKERS, "iid", seed=seed)
        self.rng = torch.Generator().manual_seed(seed)
        self.average()  # all begin with one trunk

    def step(self, number: int) -> None:
        """Take one step with each net, on the data of the worker where it is."""
        visit = number * VISITS // self.steps
        for k, (net, optimizer) in enumerate(zip(self.nets, self.optimizers, strict=True)):
            part = self.parts[(k + visit) % WORKERS]
            for group in optimizer.param_groups:
                group["lr"] = self.rate * skerry.cosine(number / self.steps)
            batch = part[torch.randint(len(part), (self.config.batch_size,), generator=self.rng)]
            optimizer.zero_grad()
            F.cross_entropy(net(self.x[batch]).flatten(0, 1), self.y[batch].flatten()).backward()
            nn.utils.clip_grad_norm_(net.parameters(), self.config.clip_grad_norm or math.inf)
            optimizer.step()
        if (number + 1) % EVERY == 0 or number + 1 == self.steps:
            self.average()

    @torch.no_grad()
    def average(self) -> None:
        """Give all nets the mean of their trunks."""
        for name in self.trunk:
            own = [net.get_parameter(name) for net in self.nets]
            mean = torch.stack(own).mean(0)
            for parameter in own:
                parameter.copy_(mean)

    @torch.no_grad()
    def losses(self) -> dict[str, float]:
        """Return the validation loss of the mean of all logits, and of the best net."""
        together, alone = 0.0, torch.zeros(WORKERS)
        for x, y in zip(self.test[0].split(256), self.test[1].split(256), strict=True):
            logits = torch.stack([net(x) for net in self.nets])
            together += _total(logits.mean(0), y)
            alone += torch.tensor([_total(own, y) for own in logits])
        return {"loss": together / self.test[1].numel(), "best_net": float(alone.min()) / self.test[1].numel()}

    def megabytes(self) -> float:
        """Return what a worker sends: its trunk for each mean (as a ring all-reduce), its net whenever it moves."""
        sizes = {name: parameter.nbytes for name, parameter in self.nets[0].named_parameters()}
        trunk = sum(sizes[name] for name in self.trunk) * 2 * (WORKERS - 1) / WORKERS
        return (trunk * -(-self.steps // EVERY) + sum(sizes.values()) * (VISITS - 1)) / 1e6


def in_trunk(name: str, blocks: int) -> bool:
    """Return whether a parameter is of the embeddings or of the first ``blocks`` blocks."""
    return name.startswith(("tokens", "positions", *(f"blocks.{k}." for k in range(blocks))))


def _total(logits: Tensor, y: Tensor) -> float:
    return float(F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"))


def main() -> None:
    """Train once and print the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--length", type=float, default=1.0, help="1: 1500 steps")
    parser.add_argument("--trunk", choices=("none", "0", "1", "2"), default="1")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    torch.set_num_threads(1)
    training = Training(o.rate, o.length, o.seed, None if o.trunk == "none" else int(o.trunk))
    for number in range(training.steps):
        training.step(number)
        if (number + 1) % max(1, training.steps // 8) == 0 or number + 1 == training.steps:
            print(json.dumps({"steps": number + 1, **training.losses(), "MB": training.megabytes()}), flush=True)


if __name__ == "__main__":
    main()
