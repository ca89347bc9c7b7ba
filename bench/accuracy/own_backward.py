"""A wide language model whose workers run all of it forward, and backward only through units of their own.

    SKERRY_DATA=... python bench/accuracy/own_backward.py --rate .016 --length .33
    SKERRY_DATA=... python bench/accuracy/own_backward.py --rate .016 --length .33 --deal anew

In the manner of arXiv 2509.22418: a full forward pass, and a backward pass through a subset of the units. The model is
the one of ``local_sgd`` in ``gpt-shakespeare``. Each of 4 workers has a head and a quarter of the hidden units of each
block as its own: fixed, or dealt anew in each round. Gradients of its own units and of what all share (embeddings,
norms and the head) move weights; what other units say counts as a constant. After 20 steps each weight of a unit is
taken from its owner, and the rest is averaged. Optimizer state stays with the worker.

Operations per step: one forward of the whole, and two of a worker's part, against three of the whole. Steps are chosen
so that a worker spends as much as with the recipe's other methods. In memory a worker has all weights.
"""

import argparse
import json
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry.experiments.models.gpt import GPT, Block
from skerry.experiments.recipes import find_recipe
from skerry.experiments.runs.execute import configured, make_optimizer

WORKERS, LOCAL = 4, 20
STEPS = 420
"""Steps of the wide net at length 1 (the recipe's ``local_sgd``)."""
WHOLE = 3.6
"""What a step of the wide net costs in steps of a quarter of its units (docs/language-models.md)."""
OF_UNITS = {"query": 0, "key": 0, "value": 0, "out": 1, "up": 0, "down": 1}
"""The dim of each matrix that has the units of a block."""


class OwnBackward(Block):
    """A block that passes gradients only through units with ``own`` true: heads, then hidden units."""

    own_heads: Tensor
    own_hidden: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to the same shape."""
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for f in (self.query, self.key, self.value))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(own_only(heads, self.own_heads))
        return x + self.down(own_only(F.gelu(self.up(self.norm2(x))), self.own_hidden))


def own_only(values: Tensor, own: Tensor) -> Tensor:
    """Return the values; those of others as constants."""
    return torch.where(own, values, values.detach())


def units_of(net: GPT, worker: int, rng: torch.Generator | None) -> list[dict[str, Tensor]]:
    """Return masks of the heads and hidden units of each block that are the worker's, as ``rng`` deals them."""
    found = []
    for block in net.blocks:
        num_heads, hidden = len(block.query.weight) // block.head_size, len(block.up.weight)
        masks = []
        for num in (num_heads, hidden):
            order = torch.arange(num) if rng is None else torch.randperm(num, generator=rng)
            mask = torch.zeros(num, dtype=torch.bool)
            mask[order[worker * num // WORKERS : (worker + 1) * num // WORKERS]] = True
            masks.append(mask)
        found.append({"heads": masks[0].repeat_interleave(block.head_size), "hidden": masks[1]})
    return found


def element_masks(net: GPT, own: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return for each weight matrix with units which elements are of own units."""
    masks = {}
    for k, block in enumerate(net.blocks):
        for name, dim in OF_UNITS.items():
            units = own[k]["hidden" if name in ("up", "down") else "heads"]
            weight = getattr(block, name).weight
            masks[f"blocks.{k}.{name}.weight"] = (units[:, None] if dim == 0 else units[None]).expand_as(weight)
    return masks


class Training:
    """The wide net, what each worker keeps of its optimizer, and a learning rate that goes down over ``steps``."""

    def __init__(self, rate: float, length: float, seed: int, *, anew: bool) -> None:
        built = find_recipe("gpt-shakespeare")
        self.config = configured(built, "local_sgd", {"optimizer.lr": rate, "seed": seed})
        task = built.task(self.config)
        (self.x, self.y), self.test = task.train, task.test
        torch.manual_seed(seed)
        sizes = {"layers": 2, "width": 64, "heads": 4, "head_size": 16, "hidden": 256}
        self.net = GPT(task.sizes["vocabulary"], task.sizes["block"], **sizes)
        for block in self.net.blocks:
            block.__class__ = OwnBackward
        self.rate, self.anew = rate, anew
        cost = (WHOLE + 2) / (3 * WHOLE)  # of a step, where one of the wide net is 1
        self.rounds = round(STEPS * length / cost / LOCAL)
        self.parts = skerry.split(self.y[:, 0], WORKERS, "iid", seed=seed)
        self.rng = torch.Generator().manual_seed(seed)
        self.parameters = dict(self.net.named_parameters())
        self.kept = [make_optimizer(self.config)(self.net).state_dict() for _ in range(WORKERS)]

    def round(self, number: int) -> None:
        """Train every worker, then take each element from its owner, or the mean of those that all have."""
        start = {name: p.detach().clone() for name, p in self.parameters.items()}
        merged = {name: torch.zeros_like(p) for name, p in start.items()}
        for worker in range(WORKERS):
            own = units_of(self.net, worker, torch.Generator().manual_seed(number) if self.anew else None)
            masks = element_masks(self.net, own)
            self._put(start)
            for block, units in zip(self.net.blocks, own, strict=True):
                block.own_heads, block.own_hidden = units["heads"], units["hidden"]
            self._local_steps(worker, number * LOCAL, masks, start)
            for name, p in self.parameters.items():
                merged[name] += p.detach() * masks[name] if name in masks else p.detach() / WORKERS
        self._put(merged)

    def _local_steps(self, worker: int, first: int, masks: dict[str, Tensor], start: dict[str, Tensor]) -> None:
        part, optimizer = self.parts[worker], make_optimizer(self.config)(self.net)
        optimizer.load_state_dict(self.kept[worker])
        for step in range(first, first + LOCAL):
            for group in optimizer.param_groups:
                group["lr"] = self.rate * skerry.cosine(step / (self.rounds * LOCAL))
            batch = part[torch.randint(len(part), (self.config.batch_size,), generator=self.rng)]
            optimizer.zero_grad()
            F.cross_entropy(self.net(self.x[batch]).flatten(0, 1), self.y[batch].flatten()).backward()
            for name, mask in masks.items():
                self.parameters[name].grad.mul_(mask)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip_grad_norm or math.inf)
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():  # decay and momentum would move those of others
                    self.parameters[name].copy_(torch.where(mask, self.parameters[name], start[name]))
        self.kept[worker] = optimizer.state_dict()

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, p in self.parameters.items():
            p.copy_(values[name])

    @torch.no_grad()
    def loss(self) -> float:
        """Return the validation loss."""
        total = 0.0
        for x, y in zip(self.test[0].split(256), self.test[1].split(256), strict=True):
            total += float(F.cross_entropy(self.net(x).flatten(0, 1), y.flatten(), reduction="sum"))
        return total / self.test[1].numel()


def main() -> None:
    """Train once and print the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--length", type=float, default=1.0, help="1: as many operations as 1500 steps of a narrow net")
    parser.add_argument("--deal", choices=("once", "anew"), default="once")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    torch.set_num_threads(1)
    training = Training(o.rate, o.length, o.seed, anew=o.deal == "anew")
    for number in range(training.rounds):
        training.round(number)
        if (number + 1) % max(1, training.rounds // 8) == 0 or number + 1 == training.rounds:
            print(json.dumps({"steps": (number + 1) * LOCAL, "loss": training.loss()}), flush=True)


if __name__ == "__main__":
    main()
