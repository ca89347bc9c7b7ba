"""What can be made of narrow nets and the mean of their logits: one net, narrow or wide, or nets that know the others.

    SKERRY_DATA=... python -m skerry train gpt-shakespeare --method relay --set optimizer.lr=.016 --out runs/relay
    SKERRY_DATA=... python bench/accuracy/mean_of_nets.py distil runs/relay --share .5
    SKERRY_DATA=... python bench/accuracy/mean_of_nets.py finish runs/relay --rate .004 --length .07
    SKERRY_DATA=... python bench/accuracy/mean_of_nets.py together --length .33           # and with --apart

``distil``: a narrow net, trained by ``narrow`` as in the recipe, whose loss is ``--share`` parts cross entropy to the
distribution of the mean of the run's nets, the rest cross entropy to the text (Hinton, Vinyals, Dean: Distilling the
Knowledge in a Neural Network, 2015, arXiv 1503.02531, at temperature 1). Each worker needs all nets once.

``finish``: the nets of the run become one wide net, in which weights from one net to another are zero at first, and it
is trained whole for some more steps, centrally, in batches of the recipe. A step costs about as much as sixteen of a
narrow net. One machine could do so layer by layer.

``together``: a relay in plain PyTorch whose nets train on the mean of the logits of all nets. A worker keeps the logits
that each net had for its data when it last visited, so nothing but nets is sent. ``--apart``: the same without them.
"""

import argparse
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import skerry
from skerry.algorithms import local_sgd
from skerry.experiments.config import Config
from skerry.experiments.models.gpt import GPT
from skerry.experiments.recipes import find_recipe
from skerry.experiments.recipes.recipe import Task
from skerry.experiments.runs.execute import configured, make_optimizer
from skerry.training import Callback, Score, Test

RECIPE = "gpt-shakespeare"
WARM_UP = 10  # steps, of finish: the first ones of Adam move each weight by the rate


def prepared(method: str, rate: float, seed: int) -> tuple[Config, Task]:
    """Return the recipe's settings for a method, and its data."""
    built = find_recipe(RECIPE)
    config = configured(built, method, {"optimizer.lr": rate, "seed": seed})
    return config, built.task(config)


def narrow_gpt(config: Config, task: Task, seed: int) -> GPT:
    """Return the net of ``narrow``: one head and a quarter of the hidden units in a stream of 64 channels."""
    torch.manual_seed(seed)
    sizes = {"layers": 2, "width": 64, "heads": 1, "head_size": 16, "hidden": 64}
    return GPT(task.sizes["vocabulary"], task.sizes["block"], **sizes)


@torch.no_grad()
def logits_of(net: nn.Module, x: Tensor) -> Tensor:
    """Return the logits for all samples, in half precision."""
    return torch.cat([net(part).half() for part in x.split(256)])


@torch.no_grad()
def loss_of_mean(nets: list[nn.Module], x: Tensor, y: Tensor) -> float:
    """Return the validation loss of the mean of the nets' logits."""
    total = 0.0
    for part, targets in zip(x.split(256), y.split(256), strict=True):
        mean = sum(net(part) for net in nets) / len(nets)
        total += float(F.cross_entropy(mean.flatten(0, 1), targets.flatten(), reduction="sum"))
    return total / y.numel()


def distil(run: Path, share: float, rate: float, length: float, seed: int) -> None:
    """Print the curve of one net that learns from the mean of a run's nets."""
    config, task = prepared("narrow", rate, seed)
    teacher = skerry.load(run).model.eval()
    x, y = task.train
    targets = torch.cat([logits_of(teacher, x), y[..., None].half()], -1)  # a token's number is exact in half precision

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if target.ndim == 2:  # the test set
            return F.cross_entropy(output.flatten(0, 1), target.flatten())
        soft, hard = target[..., :-1].float().softmax(-1), target[..., -1].long()
        flat = output.flatten(0, 1)
        return share * F.cross_entropy(flat, soft.flatten(0, 1)) + (1 - share) * F.cross_entropy(flat, hard.flatten())

    net = narrow_gpt(config, task, seed)
    parts = skerry.split(y[:, 0], config.workers, "iid", seed=seed)
    rounds = round(config.rounds * length)
    skerry.train(
        net, loss, skerry.Shards(x, targets, parts, batch_size=config.batch_size, seed=seed),
        plan=skerry.Plan.whole(net), optimizer=make_optimizer(config), num_rounds=rounds, seed=seed,
        algorithm=local_sgd(config.workers, local_steps=config.local_steps, optimizer_state="stay"),
        schedule=skerry.cosine,
        clip_grad_norm=config.clip_grad_norm, test=Test(*task.test, every=max(1, rounds // 8), batch_size=256),
        callbacks=[Callback(on_round=lambda _, record: show(record.round + 1, record.score))],
    )  # fmt: skip


def wide_gpt(nets: Sequence[GPT], task: Task) -> nn.Module:
    """Return one GPT with norms in groups that computes the mean of the logits of the nets."""
    n = len(nets)
    sizes = {"layers": 2, "width": 64 * n, "heads": n, "head_size": 16, "hidden": 64 * n}
    wide = GPT(task.sizes["vocabulary"], task.sizes["block"], **sizes)
    skerry.discovery.group_norms_(wide, n)
    narrow = [dict(net.named_parameters()) for net in nets]
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            values = [each[name] for each in narrow]
            if name == "head.weight":
                values = [value / n for value in values]
            along = parameter.ndim - 1  # norms, embeddings and the head: by channels of the stream
            parameter.copy_(
                torch.block_diag(*values) if name.startswith("blocks") and along else torch.cat(values, along)
            )
    return wide


def finish(run: Path, rate: float, length: float, seed: int) -> None:
    """Print the curve of one wide net that begins as the mean of a run's nets."""
    config, task = prepared("relay", rate, seed)
    x, y = task.train
    nets = list(skerry.load(run).model.nets)
    wide = wide_gpt(nets, task)
    assert torch.allclose(wide(x[:8]), sum(net(x[:8]) for net in nets) / len(nets), atol=1e-4)
    optimizer, rng = make_optimizer(config)(wide), torch.Generator().manual_seed(seed)
    steps = round(config.rounds * config.local_steps * length)
    print(json.dumps({"step": 0, "loss": loss_of_mean([wide], *task.test)}), flush=True)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * skerry.cosine((step - 1) / steps) * min(1.0, step / WARM_UP)
        batch = torch.randint(len(x), (config.batch_size,), generator=rng)
        optimizer.zero_grad()
        F.cross_entropy(wide(x[batch]).flatten(0, 1), y[batch].flatten()).backward()
        nn.utils.clip_grad_norm_(wide.parameters(), config.clip_grad_norm or math.inf)
        optimizer.step()
        if step % max(1, steps // 4) == 0:
            print(json.dumps({"step": step, "loss": loss_of_mean([wide], *task.test)}), flush=True)


def show(round: int, score: Score | None) -> None:
    """Print a point of the curve."""
    if score is not None:
        print(json.dumps({"round": round, "loss": score.loss}), flush=True)


def together(rate: float, length: float, rounds: int, seed: int, *, apart: bool) -> None:
    """Print the curve of a relay whose nets know what the others say."""
    config, task = prepared("relay", rate, seed)
    x, y = task.train
    n, steps = config.workers, round(config.rounds * config.local_steps * length / rounds)
    nets = [narrow_gpt(config, task, seed * n + k) for k in range(n)]
    optimizers = [make_optimizer(config)(net) for net in nets]
    parts = skerry.split(y[:, 0], n, "iid", seed=seed)
    rng = torch.Generator().manual_seed(seed)
    said: list[dict[int, Tensor]] = [{} for _ in range(n)]  # by worker: what each net said about its data
    for round_ in range(rounds):
        for worker, part in enumerate(parts):
            k = (worker + round_) % n
            net, optimizer = nets[k], optimizers[k]
            others = [logits for other, logits in said[worker].items() if other != k]
            for step in range(round_ * steps, (round_ + 1) * steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * skerry.cosine(step / (rounds * steps))
                batch = torch.randint(len(part), (config.batch_size,), generator=rng)
                output = net(x[part[batch]])
                heard = sum((logits[batch].float() for logits in others), torch.zeros(()))
                loss = F.cross_entropy(((output + heard) / (1 + len(others))).flatten(0, 1), y[part[batch]].flatten())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), config.clip_grad_norm or math.inf)
                optimizer.step()
            if not apart:
                said[worker][k] = logits_of(net, x[part])
        if (round_ + 1) % max(1, rounds // 8) == 0 or round_ + 1 == rounds:
            mean, alone = loss_of_mean(nets, *task.test), loss_of_mean(nets[:1], *task.test)
            print(json.dumps({"round": round_ + 1, "loss": mean, "first_net": alone}), flush=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("distil", "finish", "together"))
    parser.add_argument("run", type=Path, nargs="?", help="distil, finish: a finished run of relay or ensemble")
    parser.add_argument("--share", type=float, default=0.5, help="distil: of the loss, that of the mean's distribution")
    parser.add_argument("--apart", action="store_true", help="together: nets do not know what the others say")
    parser.add_argument("--rounds", type=int, default=16, help="together")
    parser.add_argument("--rate", type=float, default=0.016)
    parser.add_argument("--length", type=float, default=1.0, help="1: 1500 steps per worker")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if o.what == "distil":
        distil(o.run, o.share, o.rate, o.length, o.seed)
    elif o.what == "finish":
        finish(o.run, o.rate, o.length, o.seed)
    else:
        together(o.rate, o.length, o.rounds, o.seed, apart=o.apart)


if __name__ == "__main__":
    main()
